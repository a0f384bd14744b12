// Entry point: switches between the setup view and the call view.

import { CallView } from "./call.js";
import { Session } from "./session.js";
import { Setup } from "./setup.js";
import { clientWith } from "./server.js";

const STEPS = {
  microphone: "Waiting for the microphone …",
  connecting: "Connecting …",
  preparing: "Preparing the voice …",
};

const find = (id) => document.getElementById(id);
const setup = new Setup();
const view = new CallView();
let session = null;

setup.onstart = async () => {
  if (session) return;
  if (!setup.loaded) await setup.load();
  if (!setup.loaded || session) return;
  setup.showProblem(null);
  session = new Session();
  session.addEventListener("state", ({ detail }) => enter(detail));
  const { key, start, deviceId } = setup;
  const awake = stayAwake();
  const outcome = await session.run({ client: clientWith(key), key, start, deviceId });
  awake.then((lock) => lock?.release());
  leave(outcome);
};
view.onagain = () => {
  view.hide();
  show("idle");
  find("setup").hidden = false;
  find("start").focus();
};
find("cancel").addEventListener("click", () => session?.end());
addEventListener("pagehide", () => session?.end());
addEventListener("beforeunload", (event) => {
  if (session?.state === "talking") event.preventDefault();
});

function enter(state) {
  show(state);
  if (state in STEPS) {
    setup.busy(STEPS[state]);
    announce(STEPS[state]);
  } else if (state === "talking") {
    setup.busy(null);
    find("setup").hidden = true;
    view.begin(session, setup.chosen);
    announce("The call has started. You can talk at any time.");
  }
}

function leave(outcome) {
  const talked = Boolean(session.recording);
  setup.busy(null);
  if (talked) {
    view.finish(outcome);
    announce(outcome.problem ? `${outcome.problem.title}. ${outcome.problem.advice}` : "The call is over.");
  } else {
    show("idle");
    announce("");
    setup.showProblem(outcome.problem);
    if (!outcome.problem?.asksForKey) find("start").focus();
  }
  session = null;
  setup.checkServer();
}

function show(state) {
  document.body.dataset.state = state;
}

function announce(text) {
  find("status").textContent = text;
}

/** Keep the screen on: a sleeping phone disables the microphone. */
async function stayAwake() {
  try {
    return await navigator.wakeLock?.request("screen");
  } catch {
    return null;
  }
}
