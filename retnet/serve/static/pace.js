// How fast a turn goes, by the server's counts and this page's clock.

export class Pace {
  #began = performance.now();
  #first = null;
  #last = null;
  #firstTokens = 0;

  promptTokens = 0;
  tokens = 0;

  update({ prompt_tokens: promptTokens, completion_tokens: tokens }) {
    this.promptTokens = promptTokens;
    if (!tokens || tokens === this.tokens) return;
    this.#last = performance.now();
    if (this.#first === null) {
      this.#first = this.#last;
      this.#firstTokens = tokens;
    }
    this.tokens = tokens;
  }

  // Seconds until the first token was there; null while none is.
  get firstToken() {
    return this.#first === null ? null : (this.#first - this.#began) / 1000;
  }

  // Tokens a second after the first; null until there are some.
  get rate() {
    const spent = (this.#last - this.#first) / 1000;
    return spent > 0 ? (this.tokens - this.#firstTokens) / spent : null;
  }
}
