// Where errors are shown, as the server words them, and where a key is asked for.

import { byId } from "./dom.js";

const alert = byId("alert");
const retry = byId("alert-retry");

export function hideError() {
  alert.hidden = true;
}

export function showError(text, again = null) {
  byId("alert-text").textContent = text;
  retry.hidden = again === null;
  retry.onclick = again;
  alert.hidden = false;
}

byId("alert-close").addEventListener("click", () => {
  hideError();
  byId("prompt").focus();
});

export function askForKey(reason) {
  byId("key-reason").textContent = reason;
  byId("key-form").hidden = false;
  byId("key").focus();
}

// `use(key)` gets what is entered, and "" where the key is to be forgotten.
export function startKeys(use) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("key-form").hidden = true;
    use(byId("key").value.trim());
    byId("key").value = "";
  });
  byId("forget-key").addEventListener("click", () => use(""));
}
