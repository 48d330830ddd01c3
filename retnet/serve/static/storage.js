// What this tab remembers while it is open: the key, the settings, the words of its sessions.
// A session on the server is what its text became, a state; its words are only known here.

const NAME = "retnet.";

function read(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(NAME + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    sessionStorage.setItem(NAME + name, JSON.stringify(value));
  } catch {
    forget(name); // full, or not allowed: the page works without
  }
}

function forget(name) {
  try {
    sessionStorage.removeItem(NAME + name);
  } catch {
    // Not allowed: there was nothing.
  }
}

export const key = {
  get: () => read("key", ""),
  set: (value) => (value ? write("key", value) : forget("key")),
};

export const settings = { get: () => read("sampling", {}), set: (value) => write("sampling", value) };

export const current = { get: () => read("session", null), set: (id) => write("session", id) };

// What is known of a session's text: its turns, and how many tokens it had after the last.
export class Texts {
  #texts = new Map();

  of(id) {
    if (!this.#texts.has(id)) this.#texts.set(id, read(`text.${id}`, { turns: [], numTokens: 0 }));
    return this.#texts.get(id);
  }

  add(id, turn, numTokens) {
    const text = this.of(id);
    text.turns.push(turn);
    text.numTokens = numTokens;
    write(`text.${id}`, text);
  }

  copy(id, newId) {
    const { turns, numTokens } = this.of(id);
    this.#texts.set(newId, { turns: [...turns], numTokens });
    write(`text.${newId}`, this.of(newId));
  }

  drop(id) {
    this.#texts.delete(id);
    forget(`text.${id}`);
  }
}
