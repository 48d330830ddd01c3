// The sampling controls. What is left empty is not sent, so the server's own defaults hold.

import { byId } from "./dom.js";
import { settings } from "./storage.js";

const form = byId("sampling-form");
const fields = [...form.querySelectorAll("input, textarea")];

const ESCAPES = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
const unescape = (text) => text.replace(/\\([ntr\\])/g, (_, letter) => ESCAPES[letter]);

function valueOf(field) {
  if (field.name === "stop") return field.value.split("\n").filter(Boolean).map(unescape);
  if (field.validity.badInput) throw new Error(`${field.name} must be a number.`);
  return Number(field.value);
}

// The fields of a request; throws an Error where something is not a number.
export const samplingFields = () =>
  Object.fromEntries(fields.filter(({ value }) => value).map((each) => [each.name, valueOf(each)]));

const save = () => settings.set(Object.fromEntries(fields.map(({ name, value }) => [name, value])));

export function startSampling() {
  const saved = settings.get();
  for (const field of fields) if (field.name in saved) field.value = saved[field.name];
  form.addEventListener("input", save);
  form.addEventListener("reset", () => setTimeout(save)); // by then the fields have been reset
  form.addEventListener("submit", (event) => event.preventDefault());
}
