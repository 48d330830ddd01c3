// The page: begins with what the server is, then turns, one at a time.

import { askForKey, hideError, showError, startKeys } from "./alerts.js";
import { Announcer } from "./announcer.js";
import { Client, ServerError } from "./api.js";
import { Composer } from "./composer.js";
import { byId } from "./dom.js";
import { Figures } from "./figures.js";
import { count, short } from "./format.js";
import { Pace } from "./pace.js";
import { samplingFields, startSampling } from "./sampling.js";
import { Sessions } from "./sessions.js";
import { Texts, key } from "./storage.js";
import { beginTurn, setBusy, showText } from "./transcript.js";
import { requestOf, runTurn } from "./turn.js";

const client = new Client();
const texts = new Texts();
const figures = new Figures();
const announcer = new Announcer(byId("spoken"));
const sessions = new Sessions(client, texts, attempt, showSession);
const composer = new Composer(() => attempt(write), stop);
let model = null;
let running = null; // what aborts the turn that runs

// Runs what may fail; shows what went wrong, and asks for a key where that is what is missing.
async function attempt(action, again = null) {
  hideError();
  try {
    await action();
  } catch (error) {
    if (error instanceof ServerError && error.status === 401) askForKey(error.message);
    else showError(error.message, again);
    if (error.status === 404) await lookAgain().catch(() => {}); // what the panel lists is old
  }
}

async function lookAgain() {
  const before = sessions.numTokens;
  await sessions.refresh();
  if (sessions.numTokens !== before || sessions.id === null) showSession();
}

function showModel() {
  const { id, retnet } = model;
  byId("model").textContent =
    `${id} · ${short(retnet.num_parameters)} parameters · ${retnet.dtype} · ${count(retnet.num_slots)} slots`;
  document.title = `${id} – retnet`;
  figures.setModel(model);
  composer.setHasChat(retnet.has_chat_template);
}

function showSession() {
  byId("text-title").textContent = sessions.id ?? "New text";
  showText(sessions.id === null ? { turns: [], numTokens: 0 } : texts.of(sessions.id), sessions.numTokens);
  figures.clearPace();
  showCounts();
}

function showCounts() {
  figures.showTokens(sessions.numTokens);
  figures.explain(sessions.numTokens);
  composer.setEmpty(sessions.numTokens === 0);
}

async function start() {
  [model] = await client.models();
  showModel();
  await sessions.refresh();
  showSession();
}

function setRunning(controller) {
  running = controller;
  const isBusy = controller !== null;
  composer.setBusy(isBusy);
  sessions.setBusy(isBusy);
  setBusy(isBusy);
}

function stop() {
  running?.abort();
}

async function write() {
  if (model === null) await start();
  const controller = new AbortController();
  setRunning(controller);
  const prompt = composer.take();
  try {
    const sampling = samplingFields();
    const session = await sessions.require();
    const { isChat, system } = composer;
    const request = requestOf({ model: model.id, session, prompt, system, isChat, sampling });
    await turn({ prompt, isChat }, request, controller.signal);
  } catch (error) {
    composer.putBack(prompt);
    throw error;
  } finally {
    setRunning(null);
  }
}

// A turn whose stream has begun ends as a part of the text, whatever becomes of it; its error is
// thrown on.
async function turn(said, request, signal) {
  const before = sessions.numTokens;
  const pace = new Pace();
  const view = beginTurn(said);
  let answer = "";
  let failure = null;
  const onPiece = (text) => {
    view.append(text);
    announcer.add(text);
    answer += text;
  };
  const onUsage = (usage) => {
    pace.update(usage);
    figures.showPace(pace);
    figures.showTokens(before + pace.promptTokens + pace.tokens);
  };
  announcer.say("Writing.");
  try {
    await runTurn(client, request, signal, { onPiece, onUsage });
  } catch (error) {
    failure = error;
  }
  const end = failure === null ? await keptTurn() : await brokenTurn(before, signal.aborted);
  announcer.finish(end.note || "The end.");
  const isUndone = !end.isKept && composer.putBack(said.prompt) && answer === "";
  if (isUndone) view.remove();
  else view.end(end);
  if (end.isKept) texts.add(sessions.id, { ...said, answer, ...end }, sessions.numTokens);
  showCounts();
  if (failure !== null && !signal.aborted) throw failure;
}

async function keptTurn() {
  await sessions.update();
  return { isKept: true, note: "" };
}

// A turn that is stopped or fails changes nothing; whether it had ended before, the server knows.
async function brokenTurn(before, wasStopped) {
  const why = wasStopped ? "Stopped." : "Broken off.";
  try {
    await settled();
  } catch {
    return { isKept: false, note: `${why} The server does not say whether the session holds this turn.` };
  }
  if (sessions.numTokens === before)
    return { isKept: false, note: `${why} Not kept: the session stands where it did before this turn.` };
  return { isKept: true, note: `${why} The session holds this turn all the same, maybe more than is shown.` };
}

// Until the server has let go of the turn, a few steps after its stream was closed.
async function settled() {
  for (let tries = 0; tries < 40; tries++) {
    await sessions.update();
    if (!sessions.current.busy) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && model !== null && running === null) lookAgain().catch(() => {});
});

// On a narrow screen the text comes first.
if (matchMedia("(max-width: 56rem)").matches)
  for (const panel of ["sessions", "sampling"]) byId(panel).open = false;

startSampling();
startKeys((entered) => {
  useKey(entered);
  attempt(start, start);
});

function useKey(entered) {
  client.key = entered;
  key.set(entered);
  byId("forget-key").hidden = entered === "";
}

function begin() {
  attempt(start, begin);
}

useKey(key.get());
begin();
