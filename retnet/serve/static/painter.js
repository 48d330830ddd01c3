// Draws once a frame however often it is asked to: tokens come faster than screens change.

export class Painter {
  #draw;
  #isDue = false;

  constructor(draw) {
    this.#draw = draw;
  }

  request() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => this.now());
  }

  // What is due is drawn; hidden pages have no frames.
  now() {
    if (!this.#isDue) return;
    this.#isDue = false;
    this.#draw();
  }
}
