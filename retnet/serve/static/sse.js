// Server-sent events out of the body of a response: the data of each, as it arrives.

export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let unfinished = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (unfinished + value).split("\n");
      unfinished = lines.pop();
      for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening closes the connection
  }
}
