// A turn: what is asked of the server, and what comes back piece by piece.

const USAGE = { include_usage: true, continuous_usage_stats: true };

export function requestOf({ model, session, prompt, system, isChat, sampling }) {
  const common = { model, session_id: session, stream: true, stream_options: USAGE, ...sampling };
  if (!isChat) return ["v1/completions", { ...common, prompt }];
  const messages = [{ role: "user", content: prompt }];
  if (system) messages.unshift({ role: "system", content: system });
  return ["v1/chat/completions", { ...common, messages }];
}

// Calls `onPiece(text)` and `onUsage(usage)` as they come; returns why the text ended.
export async function runTurn(client, [path, body], signal, { onPiece, onUsage }) {
  let finish = null;
  for await (const { choices, usage } of client.stream(path, body, signal)) {
    for (const choice of choices) {
      onPiece(choice.text ?? choice.delta?.content ?? "");
      finish = choice.finish_reason ?? finish;
    }
    if (usage) onUsage(usage);
  }
  return finish;
}
