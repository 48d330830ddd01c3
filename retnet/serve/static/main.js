// The page: what the server is, which session is shown, and the parts that do the rest.

import { askForKey, hideError, showError, startKeys } from "./alerts.js";
import { Announcer } from "./announcer.js";
import { Client } from "./api.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { Figures } from "./figures.js";
import { count, short } from "./format.js";
import { startSampling } from "./sampling.js";
import { Sessions } from "./sessions.js";
import { Texts, key } from "./storage.js";
import { showText } from "./transcript.js";
import { Writer } from "./writer.js";

const COME_BACK_MS = 1500;

const client = new Client();
const texts = new Texts();
const figures = new Figures();
const announcer = new Announcer(byId("spoken"));
const sessions = new Sessions(client, texts, attempt, showSession);
const composer = new Composer(() => attempt(write), () => writer.stop());
const parts = { client, texts, sessions, figures, announcer, composer };
const writer = new Writer({ ...parts, attempt, showSession, showCounts });
let model = null;
let started = null;

// Runs what may fail; shows what went wrong, and asks for a key where that is what is missing.
async function attempt(action, again = null) {
  hideError();
  try {
    await action();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
    else if (error.status === 503 && again !== null) comeBack(error.message, again);
    else showError(error.message, again);
    if (error.status === 404) await lookAgain().catch(() => {}); // what the panel lists is old
  }
}

// A server that is loading its model says so, and has it soon.
function comeBack(message, again) {
  showError(message);
  setTimeout(again, COME_BACK_MS);
}

async function lookAgain() {
  const before = sessions.numTokens;
  await sessions.refresh();
  if (sessions.numTokens !== before || sessions.id === null) showSession();
}

async function write() {
  await start();
  await writer.write(model.id);
}

function showModel() {
  const { id, retnet } = model;
  const facts = [id, `${short(retnet.num_parameters)} parameters`, retnet.dtype, `${count(retnet.num_slots)} slots`];
  byId("model").textContent = facts.join(" · ");
  document.title = `${id} – retnet`;
  figures.setModel(model);
  composer.setHasChat(retnet.has_chat_template);
}

function showSession() {
  const text = sessions.id === null ? { turns: [], numTokens: 0 } : texts.of(sessions.id);
  byId("text-title").textContent = sessions.id ?? "New text";
  showText(text, sessions.numTokens);
  figures.clearPace();
  showCounts();
}

function showCounts() {
  figures.showTokens(sessions.numTokens);
  figures.explain(sessions.numTokens);
  composer.setEmpty(sessions.numTokens === 0);
}

// Once, unless it fails: whoever writes meanwhile waits for the same.
function start() {
  started ??= load().catch((error) => {
    started = null;
    throw error;
  });
  return started;
}

async function load() {
  [model] = await client.models();
  await sessions.refresh();
  showModel();
  showSession();
}

function useKey(entered) {
  started = null;
  client.key = entered;
  key.set(entered);
  byId("forget-key").hidden = entered === "";
}

function begin() {
  attempt(start, begin);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && model !== null && !writer.isRunning) lookAgain().catch(() => {});
});

// On a narrow screen the text comes first.
if (matchMedia("(max-width: 56rem)").matches)
  for (const panel of ["sessions", "sampling"]) byId(panel).open = false;

startSampling();
startKeys((entered) => {
  useKey(entered);
  begin();
});
useKey(key.get());
begin();
