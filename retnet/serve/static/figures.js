// The figures: how long the text is, how fast it comes, and what it takes beside a KV cache.

import { drawChart } from "./chart.js";
import { byId } from "./dom.js";
import { bytes, count, duration, perSecond } from "./format.js";

const set = (id, text) => (byId(id).textContent = text);

// Keys and values of 16 bits, one pair a layer, a token and a unit of width.
const cacheBytesPerToken = ({ num_layers: layers, d_model: width }) => 2 * layers * width * 2;

const timesAsMuch = (ratio) => `${ratio < 10 ? ratio.toFixed(1) : count(Math.round(ratio))} times as much`;

export class Figures {
  #model = null;

  setModel(model) {
    this.#model = model.retnet;
    set("state-size", bytes(model.retnet.state_bytes));
  }

  showTokens(numTokens) {
    set("num-tokens", count(numTokens));
    if (this.#model === null) return;
    const cacheBytes = cacheBytesPerToken(this.#model) * numTokens;
    set("cache-size", bytes(cacheBytes));
    drawChart(byId("chart"), this.#model.state_bytes, cacheBytesPerToken(this.#model), numTokens);
  }

  // In words, for those who can't see the picture; not while a text streams.
  explain(numTokens) {
    if (this.#model === null) return;
    const state = this.#model.state_bytes;
    const perToken = cacheBytesPerToken(this.#model);
    const ratio = (perToken * numTokens) / state;
    set(
      "memory",
      ratio > 1
        ? `The state takes ${bytes(state)} at any length. The 16-bit keys and values of a Transformer of this shape would take ${bytes(perToken * numTokens)} by now, ${timesAsMuch(ratio)}.`
        : `The state takes ${bytes(state)} at any length. The 16-bit keys and values of a Transformer of this shape would take more from ${count(Math.ceil(state / perToken))} tokens on.`,
    );
  }

  showPace(pace) {
    set("rate", pace.rate === null ? "–" : perSecond(pace.rate));
    set("first", pace.firstToken === null ? "–" : duration(pace.firstToken));
    set("turn-tokens", `${count(pace.promptTokens)} + ${count(pace.tokens)}`);
  }

  clearPace() {
    for (const id of ["rate", "first", "turn-tokens"]) set(id, "–");
  }
}
