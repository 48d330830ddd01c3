// The sessions panel: what the server holds, and which of it is being written in.

import { ask, byId, element } from "./dom.js";
import { ago, bytes, plural } from "./format.js";
import { current } from "./storage.js";

const MOST_SHOWN = 200;
const name = byId("session-name");
const file = byId("session-file");

export class Sessions {
  #client;
  #texts;
  #attempt;
  #onSelect;
  #all = [];

  // `attempt` runs what may fail and shows its error; `onSelect` shows another session.
  constructor(client, texts, attempt, onSelect) {
    this.#client = client;
    this.#texts = texts;
    this.#attempt = attempt;
    this.#onSelect = onSelect;
    this.#connect("session-new", async () => this.#takeUp(await client.create(this.#name)));
    this.#connect("session-fork", () => this.#fork());
    this.#connect("session-save", () => this.#save());
    this.#connect("session-delete", () => this.#delete());
    byId("session-restore").addEventListener("click", () => file.click());
    file.addEventListener("change", () => attempt(() => this.#restore()));
  }

  // The one that is being written in; null for none yet.
  current = null;

  get id() {
    return this.current?.id ?? null;
  }

  get numTokens() {
    return this.current?.num_tokens ?? 0;
  }

  // Ask for all again; goes on in the same one if it is still there.
  async refresh() {
    const asked = this.current;
    const all = await this.#client.sessions();
    if (this.current !== asked) return; // another has been taken up: what came is old
    this.#all = all.sort((one, other) => other.last_used - one.last_used);
    const id = this.id ?? current.get();
    this.current = this.#all.find((each) => each.id === id) ?? null;
    this.#draw();
  }

  // Ask again about the one that is being written in.
  async update() {
    this.current = await this.#client.session(this.id);
    this.#all = [this.current, ...this.#all.filter((each) => each.id !== this.id)];
    this.#draw();
  }

  // A session to write in, made now if there is none.
  async require() {
    if (this.current === null) await this.#takeUp(await this.#client.create(this.#name));
    return this.id;
  }

  setBusy(isBusy) {
    byId("session-controls").disabled = isBusy;
  }

  #connect(id, action) {
    byId(id).addEventListener("click", () => this.#attempt(action));
  }

  get #name() {
    return name.value.trim();
  }

  async #takeUp(session) {
    name.value = "";
    this.#all = [session, ...this.#all.filter((each) => each.id !== session.id)];
    this.#select(session);
  }

  #select(session) {
    this.current = session;
    this.#draw();
    this.#onSelect();
  }

  async #fork() {
    const fork = await this.#client.fork(this.id, this.#name);
    this.#texts.copy(this.id, fork.id);
    await this.#takeUp(fork);
  }

  async #save() {
    const link = element("a", { download: `${this.id}.safetensors` });
    link.href = URL.createObjectURL(await this.#client.save(this.id));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the download may not have begun yet
  }

  async #restore() {
    const [chosen] = file.files;
    if (!chosen) return;
    const id = this.#name || idFrom(chosen.name);
    const exists = (await this.#client.sessions()).some((each) => each.id === id);
    const agreed = !exists || (await ask(`Replace the session ${id} by this file?`, "Replace"));
    try {
      if (!agreed) return;
      const restored = await this.#client.restore(id, chosen);
      this.#texts.drop(id);
      await this.#takeUp(restored);
    } finally {
      file.value = ""; // the same file may be chosen again
    }
  }

  async #delete() {
    const { id } = this;
    if (!(await ask(`Delete the session ${id}? Nothing is left of it.`, "Delete"))) return;
    await this.#client.remove(id);
    this.#texts.drop(id);
    this.#all = this.#all.filter((each) => each.id !== id);
    this.#select(null);
  }

  #draw() {
    current.set(this.id);
    for (const action of ["fork", "save", "delete"])
      byId(`session-${action}`).disabled = this.current === null;
    const shown = this.#all.slice(0, MOST_SHOWN);
    const focused = document.activeElement?.dataset.session;
    byId("session-list").replaceChildren(...shown.map((each) => this.#row(each)));
    if (focused) document.querySelector(`[data-session="${CSS.escape(focused)}"]`)?.focus();
    byId("session-note").textContent = noteOn(this.#all);
  }

  #row(session) {
    const facts = [plural(session.num_tokens, "token"), ago(session.last_used)];
    if (session.busy) facts.push("busy");
    const button = element(
      "button",
      { type: "button", "data-session": session.id, title: session.id },
      element("span", { className: "id", text: session.id }),
      element("span", { className: "quiet", text: facts.join(" · ") }),
    );
    if (session.id === this.id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () =>
      this.#attempt(async () => this.#select(await this.#client.session(session.id))),
    );
    return element("li", {}, button);
  }
}

// A session's name out of that of a file, which may be any: notes (2).safetensors is notes-2.
const idFrom = (fileName) =>
  fileName
    .replace(/\.safetensors$/, "")
    .replace(/[^A-Za-z0-9_-]+/g, "-")
    .replace(/^[-_]+|-+$/g, "")
    .slice(0, 64) || "restored";

function noteOn(all) {
  if (all.length === 0) return "None yet. The first text that you write makes one.";
  const size = bytes(all.reduce((sum, each) => sum + each.state_bytes, 0));
  const hidden = all.length > MOST_SHOWN ? `; the last ${MOST_SHOWN} are listed` : "";
  return `${plural(all.length, "session")}, ${size} together${hidden}.`;
}
