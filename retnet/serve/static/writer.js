// One turn after another: sends what its user wrote, shows what comes, says what became of it.

import { Pace } from "./pace.js";
import { Painter } from "./painter.js";
import { samplingFields } from "./sampling.js";
import { beginTurn, setBusy } from "./transcript.js";
import { requestOf, runTurn } from "./turn.js";

const SETTLE_TRIES = 40;
const SETTLE_MS = 100;

export class Writer {
  #parts;
  #running = null; // what aborts the turn that runs

  // `parts`: client, texts, sessions, figures, announcer, composer; `attempt`, which runs what may
  // fail; `showSession`, which shows the text anew; `showCounts`, which shows its figures.
  constructor(parts) {
    this.#parts = parts;
  }

  get isRunning() {
    return this.#running !== null;
  }

  stop() {
    this.#running?.abort();
  }

  // Writes what is in the prompt box; throws where that fails, and then it is in the box again.
  async write(model) {
    const { composer, sessions } = this.#parts;
    const prompt = composer.take();
    try {
      await this.#run(async (signal) => {
        const sampling = samplingFields();
        const session = await sessions.require();
        const { isChat, system } = composer;
        const asked = requestOf({ model, session, prompt, system, isChat, sampling });
        await this.#turn(model, { prompt, isChat }, asked, signal);
      });
    } catch (error) {
      composer.putBack(prompt);
      throw error;
    }
  }

  async #run(work) {
    const controller = new AbortController();
    this.#setRunning(controller);
    try {
      await work(controller.signal);
    } finally {
      this.#setRunning(null);
    }
  }

  #setRunning(controller) {
    this.#running = controller;
    this.#parts.composer.setBusy(this.isRunning);
    this.#parts.sessions.setBusy(this.isRunning);
    setBusy(this.isRunning);
  }

  async #turn(model, said, asked, signal) {
    const { client, sessions, figures, announcer } = this.#parts;
    const before = sessions.numTokens;
    const pace = new Pace();
    const view = beginTurn(said);
    let answer = "";
    let failure = null;
    const painter = new Painter(() => {
      view.show(answer);
      figures.showPace(pace);
      figures.showTokens(before + pace.promptTokens + pace.tokens);
    });
    const onPiece = (text) => {
      answer += text;
      announcer.add(text);
      painter.request();
    };
    const onUsage = (usage) => {
      pace.update(usage);
      painter.request();
    };
    announcer.say("Writing.");
    try {
      await runTurn(client, asked, signal, { onPiece, onUsage });
    } catch (error) {
      failure = error;
    }
    painter.now();
    const end = failure === null ? await this.#kept() : await this.#broken(before, signal.aborted);
    this.#end(model, view, { ...said, answer, ...end });
    if (failure !== null && !signal.aborted) throw failure;
  }

  async #kept() {
    await this.#parts.sessions.update();
    return { isKept: true, note: "" };
  }

  // A turn that is stopped or fails changes nothing; whether it had ended before, the server knows.
  async #broken(before, wasStopped) {
    const why = wasStopped ? "Stopped." : "Broken off.";
    try {
      await this.#settled();
    } catch {
      const note = `${why} The server does not say whether the session holds this turn.`;
      return { isKept: false, note };
    }
    return this.#parts.sessions.numTokens === before
      ? { isKept: false, note: `${why} Not kept: the session stands where it did before this turn.` }
      : { isKept: true, note: `${why} The session holds this turn all the same, maybe more than is shown.` };
  }

  // Until the server has let go of the turn, a few steps after its stream was closed.
  async #settled() {
    const { sessions } = this.#parts;
    for (let tries = 0; tries < SETTLE_TRIES; tries++) {
      await sessions.update();
      if (!sessions.current.busy) return;
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
    }
  }

  #end(model, view, turn) {
    const { texts, sessions, announcer, composer, attempt, showCounts } = this.#parts;
    announcer.finish(turn.note || "The end.");
    const isBack = !turn.isKept && composer.putBack(turn.prompt);
    if (isBack && turn.answer === "") view.remove();
    else view.end(turn, turn.isChat ? null : () => attempt(() => this.#keep(model, turn)));
    if (turn.isKept) texts.add(sessions.id, turn, sessions.numTokens);
    showCounts();
  }

  // Text that was not kept can be: it is read like any that is sent. An answer in a chat can't,
  // since it would be read as its user's.
  async #keep(model, turn) {
    const { client, texts, sessions, composer, showSession } = this.#parts;
    await this.#run(async () => {
      await client.read(model, sessions.id, turn.prompt + turn.answer);
      await sessions.update();
      texts.add(sessions.id, { ...turn, isKept: true, note: "" }, sessions.numTokens);
      composer.takeBack(turn.prompt);
      showSession();
    });
  }
}
