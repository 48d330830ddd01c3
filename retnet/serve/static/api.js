// The server's API. Addresses are relative, so the page also works behind a proxy's prefix.

import { events } from "./sse.js";

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class ConnectionError extends Error {}

// What the server says went wrong, in its own words where it has any.
async function errorOf(response) {
  const body = await response.text().catch(() => "");
  try {
    return new ServerError(response.status, JSON.parse(body).error.message);
  } catch {
    return new ServerError(response.status, `${response.status} ${response.statusText} ${body.slice(0, 500)}`);
  }
}

export class Client {
  key = "";

  async request(method, path, { body, signal } = {}) {
    const headers = this.key ? { authorization: `Bearer ${this.key}` } : {};
    if (body !== undefined && !(body instanceof Blob)) {
      headers["content-type"] = "application/json";
      body = JSON.stringify(body);
    }
    let response;
    try {
      response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ConnectionError("The server does not answer.");
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }

  async json(method, path, body) {
    return (await this.request(method, path, { body })).json();
  }

  // The chunks of a stream. It ends with [DONE]; any other end is an error.
  async *stream(path, body, signal) {
    const response = await this.request("POST", path, { body, signal });
    try {
      for await (const data of events(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ServerError(response.status, chunk.error.message);
        yield chunk;
      }
    } catch (error) {
      if (error instanceof ServerError || signal.aborted) throw error;
    }
    throw new ConnectionError("The connection was lost before the text had ended.");
  }

  models = async () => (await this.json("GET", "v1/models")).data;

  // A text is read and nothing is written after it.
  read = (model, session, prompt) =>
    this.json("POST", "v1/completions", { model, session_id: session, prompt, max_tokens: 0 });

  sessions = async () => (await this.json("GET", "v1/sessions")).data;
  session = (id) => this.json("GET", sessionPath(id));
  create = (id) => this.json("POST", "v1/sessions", id ? { id } : {});
  fork = (id, newId) => this.json("POST", `${sessionPath(id)}/fork`, newId ? { id: newId } : {});
  remove = (id) => this.json("DELETE", sessionPath(id));
  save = async (id) => (await this.request("GET", `${sessionPath(id)}/state`)).blob();
  restore = async (id, file) =>
    (await this.request("PUT", `${sessionPath(id)}/state`, { body: file.slice() })).json();
}

const sessionPath = (id) => `v1/sessions/${encodeURIComponent(id)}`;
