// The text on the page: turns, each of what its user wrote and what the model wrote after it.

import { byId, element } from "./dom.js";
import { plural } from "./format.js";

const sheet = byId("transcript");
const turns = byId("turns");

const isAtEnd = () => sheet.scrollHeight - sheet.scrollTop - sheet.clientHeight < 40;
const scrollToEnd = () => (sheet.scrollTop = sheet.scrollHeight);

function part(className, label, text) {
  const words = element("span", { className: "words", text });
  return element("span", { className }, element("span", { className: "who", text: label }), words);
}

function button(className, text, action) {
  const made = element("button", { className: `plain ${className}`, type: "button", text });
  made.addEventListener("click", action);
  return made;
}

// A turn on the page; `show` and `end` are for one that is being written.
class TurnView {
  constructor({ prompt, answer, isChat }) {
    const yours = part("yours", "You", prompt);
    const models = part("models", "Model", "");
    yours.hidden = prompt === "";
    this.answer = models.lastChild.appendChild(document.createTextNode(answer));
    this.root = element("div", { className: `turn ${isChat ? "chat" : "text"}` }, yours, models);
  }

  // All of the answer so far; what is there already is left alone.
  show(answer) {
    const follows = isAtEnd();
    this.answer.appendData(answer.slice(this.answer.length));
    if (follows) scrollToEnd();
  }

  remove() {
    this.root.remove();
    byId("empty").hidden = turns.hasChildNodes() || !byId("earlier").hidden;
  }

  // `note` says what became of a turn that the session does not hold, or may not; `keep`, if it can
  // be made to hold it, does that.
  end({ isKept, note }, keep = null) {
    const follows = isAtEnd();
    this.root.classList.remove("live");
    this.root.classList.toggle("lost", !isKept);
    if (note) this.root.append(this.#noteOf(note, isKept, keep));
    if (follows) scrollToEnd();
  }

  #noteOf(note, isKept, keep) {
    const line = element("p", { className: "note" }, element("span", { text: note }));
    if (isKept) return line;
    if (keep !== null) line.append(button("keep", "Keep it", keep));
    const dismiss = () => {
      this.remove();
      byId("prompt").focus();
    };
    line.append(button("dismiss", "Dismiss", dismiss));
    return line;
  }
}

export function showText({ turns: known, numTokens: numKnown }, numTokens) {
  turns.replaceChildren();
  for (const turn of known) {
    const view = new TurnView(turn);
    view.end(turn);
    turns.append(view.root);
  }
  const differs = numKnown !== numTokens;
  byId("earlier").hidden = !differs;
  byId("earlier").textContent = known.length
    ? `The session holds ${plural(numTokens, "token")}; what is shown here ended at ${numKnown}. It went on elsewhere.`
    : `${plural(numTokens, "token")} have been read before. A session keeps what they became, not their text.`;
  byId("empty").hidden = differs || known.length > 0;
  scrollToEnd();
}

export function beginTurn(turn) {
  byId("empty").hidden = true;
  for (const each of turns.querySelectorAll(".keep")) each.remove(); // the session goes on without
  const view = new TurnView({ ...turn, answer: "" });
  view.root.classList.add("live");
  turns.append(view.root);
  scrollToEnd();
  return view;
}

export const setBusy = (isBusy) => sheet.setAttribute("aria-busy", String(isBusy));
