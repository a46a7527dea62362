// The answer of a server function. If the request fails, Gradio's client does not throw: it returns undefined.
async function answerOf(call, problem = "The server did not respond. Try again.") {
  return (await call) ?? { problem };
}
