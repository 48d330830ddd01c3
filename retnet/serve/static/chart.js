// The picture: bytes against tokens, a state's flat line and a KV cache's rising one.

import { bytes, short } from "./format.js";

const LEFT = 46;
const RIGHT = 312;
const TOP = 14;
const BOTTOM = 144;

function shape(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

const line = (className, x1, y1, x2, y2) => shape("line", { class: className, x1, y1, x2, y2 });
const dot = (className, cx, cy) => shape("circle", { class: className, cx, cy, r: 3.5 });
const label = (className, x, y, anchor, text) =>
  shape("text", { class: className, x, y, "text-anchor": anchor }, text);

// 1, 2 or 5 times a power of ten: the least from `number` on.
function roundUp(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= number);
}

// Round amounts in steps, from one step up to `most`.
function stepsTo(most) {
  const step = roundUp(most / 5);
  return Array.from({ length: Math.floor(most / step) }, (_, index) => step * (index + 1));
}

export function drawChart(svg, stateBytes, bytesPerToken, numTokens) {
  const mostTokens = roundUp(Math.max((2 * stateBytes) / bytesPerToken, 1.2 * numTokens));
  const mostBytes = mostTokens * bytesPerToken;
  const ticks = stepsTo(mostBytes);
  const x = (tokens) => LEFT + ((RIGHT - LEFT) * tokens) / mostTokens;
  const y = (amount) => BOTTOM - ((BOTTOM - TOP) * amount) / mostBytes;
  const here = x(numTokens);
  const cacheHere = y(numTokens * bytesPerToken);
  const state = y(stateBytes);
  const besideState = BOTTOM - state > 24 ? state + 14 : state - 6;
  svg.replaceChildren(
    ...ticks.map((amount) => line("grid", LEFT, y(amount), RIGHT, y(amount))),
    line("axis", LEFT, BOTTOM, RIGHT, BOTTOM),
    ...ticks.map((amount) => label("tick", LEFT - 6, y(amount) + 3, "end", bytes(amount))),
    label("tick", LEFT - 6, BOTTOM + 3, "end", "0"),
    label("tick", LEFT, BOTTOM + 16, "middle", "0"),
    label("tick", x(mostTokens / 2), BOTTOM + 16, "middle", short(mostTokens / 2)),
    label("tick", RIGHT, BOTTOM + 16, "end", `${short(mostTokens)} tokens`),
    line("here", here, TOP, here, BOTTOM),
    line("cache ahead", here, cacheHere, RIGHT, TOP),
    line("cache", LEFT, BOTTOM, here, cacheHere),
    line("state ahead", here, state, RIGHT, state),
    line("state", LEFT, state, here, state),
    dot("cache", here, cacheHere),
    dot("state", here, state),
    label("name cache", x(mostTokens * 0.8) - 8, y(mostBytes * 0.8) - 4, "end", "a Transformer’s KV cache"),
    label("name state", RIGHT, besideState, "end", "the state"),
  );
}
