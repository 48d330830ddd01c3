// What a screen reader hears of a stream: whole words, a few seconds' worth at a time.

const PAUSE_MS = 4000;

export class Announcer {
  #region;
  #waiting = "";
  #timer = null;

  constructor(region) {
    this.#region = region;
  }

  say(text) {
    this.#region.textContent = text;
  }

  add(text) {
    this.#waiting += text;
    this.#timer ??= setTimeout(() => this.#sayWholeWords(), PAUSE_MS);
  }

  // The rest, and how it ended.
  finish(text) {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.say(`${this.#waiting} ${text}`.trim());
    this.#waiting = "";
  }

  #sayWholeWords() {
    this.#timer = null;
    const end = this.#waiting.search(/\s\S*$/);
    if (end <= 0) return;
    this.say(this.#waiting.slice(0, end));
    this.#waiting = this.#waiting.slice(end);
  }
}
