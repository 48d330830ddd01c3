// The prompt box: what is written next, in which mode, and the keys that send and stop.

import { byId } from "./dom.js";

const prompt = byId("prompt");
const system = byId("system");
const write = byId("write");
const stop = byId("stop");
const modes = byId("mode");

export class Composer {
  #isEmpty = true;

  // `onWrite()` begins a turn, `onStop()` ends the one that runs.
  constructor(onWrite, onStop) {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (stop.hidden) onWrite();
    });
    prompt.addEventListener("keydown", (event) => {
      const sends = event.ctrlKey || event.metaKey || (this.isChat && !event.shiftKey);
      if (event.key !== "Enter" || !sends || event.isComposing) return;
      event.preventDefault();
      if (stop.hidden) onWrite();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !stop.hidden) onStop();
    });
    stop.addEventListener("click", onStop);
    modes.addEventListener("change", () => this.#describe());
    this.#describe();
  }

  get isChat() {
    return !modes.hidden && modes.querySelector(":checked").value === "chat";
  }

  get system() {
    return this.isChat && this.#isEmpty ? system.value.trim() : "";
  }

  setHasChat(hasChat) {
    modes.hidden = !hasChat;
    this.#describe();
  }

  // Whether what comes next is the beginning of a text.
  setEmpty(isEmpty) {
    this.#isEmpty = isEmpty;
    this.#describe();
  }

  setBusy(isBusy) {
    const hadFocus = document.activeElement === (isBusy ? write : stop);
    write.hidden = isBusy;
    stop.hidden = !isBusy;
    if (hadFocus) (isBusy ? stop : prompt).focus();
  }

  take() {
    const taken = prompt.value;
    prompt.value = "";
    return taken;
  }

  // What was taken did not become part of a text. Returns whether it is in the box again: what has
  // been written there since comes first.
  putBack(text) {
    prompt.value ||= text;
    return text === "" || prompt.value === text;
  }

  // What was put back has become part of a text after all.
  takeBack(text) {
    if (prompt.value === text) prompt.value = "";
    prompt.focus();
  }

  #describe() {
    byId("system-box").hidden = !(this.isChat && this.#isEmpty);
    write.textContent = this.isChat ? "Send" : this.#isEmpty ? "Write" : "Go on";
    prompt.placeholder = this.isChat
      ? "Say something"
      : this.#isEmpty
        ? "Begin a text; the model goes on"
        : "Add to the text, or leave this empty to let the model go on";
    byId("hint").textContent = this.isChat
      ? "Enter sends, Shift+Enter breaks the line"
      : "Ctrl+Enter writes";
    byId("empty").textContent = this.isChat
      ? "Nothing has been said yet."
      : "Nothing has been written yet.";
  }
}
