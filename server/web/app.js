// The whole page: session, knowledge base, view.

import { get, Problem, send, useKey } from "./api.js";
import { prepareChat, show, useBase } from "./chat.js";
import { prepareDocuments, useDocuments } from "./documents.js";
import { $, make, sure, tell } from "./dom.js";
import { prepareSource } from "./source.js";
import { choose, language, say, translatePage } from "./messages.js";

let session = null;
let bases = [];

async function begin() {
  try {
    session = await get("/session");
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return askKey("");
    throw error;
  }
  if ($("key").open) $("key").close();
  $("new-base").hidden = !session.scopes.includes("admin");
  await loadBases();
}

function askKey(problem) {
  $("key-problem").textContent = problem;
  if (!$("key").open) $("key").showModal();
  $("key-field").focus();
}

async function loadBases(wanted = localStorage.getItem("base")) {
  bases = (await get("/knowledge-bases")).knowledge_bases;
  $("base").replaceChildren(...bases.map((base) => make("option", { value: base.name }, base.name)));
  $("base").disabled = !bases.length;
  const found = bases.find((base) => base.name === wanted) || bases[0];
  if (found) $("base").value = found.name;
  await chooseBase();
}

async function chooseBase() {
  const base = bases.find((each) => each.name === $("base").value);
  $("delete-base").hidden = !base || !base.scopes.includes("admin");
  if (base) localStorage.setItem("base", base.name);
  const usable = base && !base.problem ? base.name : "";
  useBase(usable);
  if (!usable) {
    const word = session.scopes.includes("admin") ? "noBase" : "noBaseRead";
    const message = base ? base.problem : say(word);
    $("thread").replaceChildren(make("p", { class: "welcome" }, message));
  }
  await useDocuments(usable, session, usable ? base.scopes : []);
}

function view(name) {
  document.body.dataset.view = name;
  for (const each of ["chat", "documents"]) {
    $(`show-${each}`).setAttribute("aria-pressed", String(each === name));
  }
}

function prepareBases() {
  const dialog = $("base-form");
  $("base").addEventListener("change", chooseBase);
  $("new-base").onclick = () => {
    const options = (select, names, none) => {
      $(select).replaceChildren(...(none ? [make("option", { value: "" }, say("none"))] : []),
        ...names.map((name) => make("option", { value: name }, name)));
    };
    options("base-embedder", session.embedders, false);
    options("base-adapter", session.adapters, true);
    $("embedder-row").hidden = session.embedders.length < 2;
    $("adapter-row").hidden = !session.adapters.length;
    $("base-problem").textContent = "";
    dialog.showModal();
    $("base-name").focus();
  };
  $("base-cancel").onclick = () => dialog.close();
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = {
      name: $("base-name").value.trim(), embedder: $("base-embedder").value,
      adapter: $("base-adapter").value, instruction: $("base-instruction").value.trim(),
    };
    try {
      await send("POST", "/knowledge-bases", wanted);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      $("base-problem").textContent = error.message;
      return;
    }
    dialog.close();
    event.target.reset();
    await loadBases(wanted.name);
  });
  $("delete-base").onclick = async () => {
    const name = $("base").value;
    if (!(await sure(say("surelyBase", name)))) return;
    await send("DELETE", `/knowledge-bases/${encodeURIComponent(name)}`);
    sessionStorage.removeItem(`conversation:${name}`);
    tell(say("removed", name));
    await loadBases();
  };
}

function prepareKey() {
  $("key").addEventListener("cancel", (event) => event.preventDefault());
  $("key").querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = $("key-field").value.trim();
    if (!/^[\x21-\x7e]*$/.test(key)) return askKey(say("wrongKey")); // a header can't contain it
    useKey(key);
    try {
      await get("/session");
    } catch (error) {
      if (error instanceof Problem && error.status === 401) return askKey(say("wrongKey"));
      throw error;
    }
    $("key-field").value = "";
    await begin();
  });
}

translatePage();
prepareChat();
prepareDocuments();
prepareSource();
prepareBases();
prepareKey();
view("chat");
$("show-chat").onclick = () => view("chat");
$("show-documents").onclick = () => view("documents");
$("language").onclick = async () => {
  choose(language() === "zh" ? "en" : "zh");
  show();
  if (session) await chooseBase();
};
begin();
