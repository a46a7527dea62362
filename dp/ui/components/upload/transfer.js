// Send files to the server, in order, in messages that hold pieces of several files: many small files would otherwise
// be many requests. The next message is packed while one is on its way. A message stays below 1 MB, since many proxies
// accept no more by default (nginx: client_max_body_size).
function createTransfer({ server }) {
  const MESSAGE_BYTES = 990_000; // of JSON; Gradio adds a few
  const PIECE_BYTES = 700_000; // of a file; base64 makes 4 of 3
  const TOO_LARGE = "a proxy in front of this server rejected the upload (413: too large). Its limit must be at least 1 MB.";
  const NO_RESPONSE = "the server did not respond. Try again.";

  // Send the files of an upload. files: { file, name }; onProgress(sent): the bytes that have arrived. Stop when
  // `isCurrent()` is false. Throws an Error if the server rejects a piece.
  async function send(files, uploadId, { isCurrent, onProgress }) {
    let message = { pieces: [], bytes: 0, length: 0 };
    let [sent, delivery] = [0, Promise.resolve()];
    const deliver = async ({ pieces, bytes }) => {
      const { problem } = await call(() => server.receive({ upload: uploadId, pieces }));
      if (problem) throw new Error(problem);
      sent += bytes;
      if (isCurrent()) onProgress(sent);
    };
    const flush = async () => {
      await delivery;
      delivery = deliver(message);
      delivery.catch(() => {}); // reported where it is awaited
      message = { pieces: [], bytes: 0, length: 0 };
    };
    for (const { about, blob, length } of splitFiles(files)) {
      if (!isCurrent()) return;
      if (message.length + length > MESSAGE_BYTES) await flush();
      message.pieces.push({ ...about, data: await encodeBase64(blob) });
      message.bytes += blob.size;
      message.length += length;
    }
    await flush();
    await delivery;
  }

  // The first piece of a file has its name. An empty file is one piece, so that the report mentions it.
  function* splitFiles(files) {
    for (const [number, { file, name }] of files.entries()) {
      let offset = 0;
      do {
        const about = offset ? { file: number, offset } : { file: number, offset, name: replaceSurrogates(name) };
        const blob = file.slice(offset, offset + PIECE_BYTES);
        const overhead = new TextEncoder().encode(JSON.stringify({ ...about, data: "" })).length + 1;
        yield { about, blob, length: overhead + 4 * Math.ceil(blob.size / 3) };
        offset += PIECE_BYTES;
      } while (offset < file.size);
    }
  }

  // A file name of Windows may contain half of a surrogate pair, which cannot be encoded as text.
  function replaceSurrogates(name) {
    return name.replace(/[\ud800-\udfff]/gu, "\ufffd");
  }

  function encodeBase64(blob) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
  }

  // Call a server function. Gradio's client returns undefined for a failed request, without the reason: the status is
  // taken from the browser's own record of requests.
  async function call(request) {
    const statuses = [];
    const collect = (entries) => {
      const calls = entries.filter(({ name }) => name.includes("component_server"));
      statuses.push(...calls.map((entry) => entry.responseStatus));
    };
    const observer = new PerformanceObserver((list) => collect(list.getEntries()));
    observer.observe({ type: "resource" });
    try {
      const answer = await request();
      if (answer) return answer;
      await new Promise((resolve) => setTimeout(resolve, 500)); // the record follows a moment later
      collect(observer.takeRecords());
      return { problem: statuses.includes(413) ? TOO_LARGE : NO_RESPONSE };
    } finally {
      observer.disconnect();
    }
  }

  return { call, send };
}
