() => {
  // Load settings uploads only the start of a large PNG: the settings come before the pixels, and many proxies accept at
  // most 1 MB.
  const MAX_BYTES = 500_000;
  const truncate = ({ target }) => {
    const [file] = target.matches('input[type=file][accept=".png"]') ? target.files : [];
    if (!file || file.size <= MAX_BYTES) return;
    const transfer = new DataTransfer();
    transfer.items.add(new File([file.slice(0, MAX_BYTES)], file.name, { type: file.type }));
    target.files = transfer.files;
  };
  document.addEventListener("change", truncate, true); // before Gradio's own listener
}
