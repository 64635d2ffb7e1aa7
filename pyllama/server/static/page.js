// The chat page: /v1/chat/completions as it streams, conversations kept in this browser's localStorage.
// What the model writes becomes text nodes and nothing else; the Content-Security-Policy holds that, too.
"use strict";

const $ = (id) => document.getElementById(id);

/** An element with attributes and properties: make("button", {className: "small", onclick: f}, "Copy"). */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

// --- what the browser keeps: one key for each conversation, so that several tabs do not overwrite each other ---

const PREFIX = "pyllama.conversation.";
const SETTINGS = "pyllama.settings";

function load(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // storage is off, or somebody else's writing
  }
}

function save(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    tell("The browser's storage is off or full: this will be gone when the page is closed.");
  }
}

function forget(key) {
  try {
    localStorage.removeItem(key);
  } catch {
    // nothing was kept
  }
}

function storedConversations() {
  const found = new Map();
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    // storage is off
  }
  for (const key of keys) {
    const conversation = load(key);
    if (conversation && Array.isArray(conversation.messages)) found.set(conversation.id, conversation);
  }
  return found;
}

function keep(conversation) {
  conversation.changed = Date.now();
  save(PREFIX + conversation.id, conversation);
}

// --- state ---

let conversations = storedConversations(); // id -> {id, changed, messages: [{role, content, stats, problem}]}
let settings = load(SETTINGS) || {};
let current = newConversation(); // what is shown; kept once it has a message
let live = null; // the answer being written: {conversation, message, abort, started, first, tokens, progress}
let leaving = false; // for another page, or for this one again
let context = null; // positions of the model's context

function newConversation() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, changed: 0, messages: [] };
}

function title(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  return first ? first.content.trim().split("\n")[0].slice(0, 80) : "New conversation";
}

// --- text to elements: paragraphs, fenced code, `code`, **strong**; all else stays as it was written ---

/** [{kind: "text" | "code" | "thought", text}] */
function blocks(text) {
  const found = [];
  const thought = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/.exec(text);
  if (thought) {
    if (thought[1].trim()) found.push({ kind: "thought", text: thought[1].trim() });
    text = text.slice(thought[0].length);
  }
  let kind = "text", fence = "", lines = [];
  const close = () => {
    const joined = kind === "code" ? lines.join("\n") : lines.join("\n").trim();
    if (kind === "code" || joined) found.push({ kind, text: joined });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = /^\s*(`{3,}|~{3,})/.exec(line)?.[1];
    if (kind === "text" && mark) {
      close();
      kind = "code";
      fence = mark;
    } else if (kind === "code" && mark?.startsWith(fence)) {
      close();
      kind = "text";
    } else if (kind === "text" && !line.trim()) {
      close();
    } else {
      lines.push(line);
    }
  }
  if (kind === "code" || lines.length) close();
  return found;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, index) => {
    if (index % 2 === 0) return part;
    return part[0] === "`" ? make("code", {}, part.slice(1, -1)) : make("strong", {}, part.slice(2, -2));
  });
}

function blockElement({ kind, text }) {
  if (kind === "code") return make("pre", { tabIndex: 0 }, make("code", {}, text));
  if (kind === "thought") return make("details", {}, make("summary", {}, "Thoughts"), make("p", {}, text));
  return make("p", {}, ...inline(text));
}

/** Shows text in an element; blocks that stay as they are keep their elements, and so a selection in them. */
function show(element, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const old = element.children[index];
    if (old && old.kind === block.kind && old.source === block.text) return;
    const fresh = Object.assign(blockElement(block), { kind: block.kind, source: block.text });
    if (old?.open) fresh.open = true;
    if (old) old.replaceWith(fresh);
    else element.append(fresh);
  });
  while (element.children.length > wanted.length) element.lastChild.remove();
}

// --- drawing ---

function drawList() {
  const sorted = [...conversations.values()].sort((a, b) => b.changed - a.changed);
  $("conversations").replaceChildren(...sorted.map((conversation) => {
    const name = title(conversation);
    const open = make("button", { type: "button", className: "open", title: name, onclick: () => choose(conversation) }, name);
    const remove = make("button", { type: "button", className: "delete", onclick: () => askToDelete(conversation) }, "×");
    remove.setAttribute("aria-label", `Delete: ${name}`);
    if (conversation === current) open.setAttribute("aria-current", "true");
    return make("li", { className: conversation === current ? "current" : "" }, open, remove);
  }));
}

function drawLog() {
  const log = $("log");
  log.replaceChildren(...current.messages.map(messageElement));
  if (!current.messages.length) {
    log.append(make("p", { className: "empty" }, "Ask something. Enter sends, Shift+Enter starts a new line, Esc stops an answer."));
  }
  log.scrollTop = log.scrollHeight;
  document.title = current.messages.length ? `${title(current)} – pyllama` : "pyllama";
}

function messageElement(message) {
  const body = make("div", { className: "body" });
  show(body, message.content);
  const foot = make("div", { className: "foot" });
  const who = make("div", { className: "who" }, message.role === "user" ? "You" : "Model");
  const element = make("article", { className: `message ${message.role}` }, who, body, foot);
  element.message = message;
  drawFoot(element);
  return element;
}

function drawFoot(element) {
  const { message } = element;
  const foot = element.querySelector(".foot");
  foot.replaceChildren();
  if (message.role !== "assistant" || live?.message === message) return;
  if (message.content) {
    foot.append(make("button", { type: "button", className: "plain small", onclick: (event) => copy(message.content, event.target) }, "Copy"));
  }
  if (message === current.messages.at(-1)) {
    foot.append(make("button", { type: "button", className: "plain small", onclick: again }, "Try again"));
  }
  if (message.problem) foot.append(make("span", { className: "problem" }, message.problem));
  foot.append(make("span", {}, message.stats ?? "not finished")); // a reload cut it off
}

/** Runs a change of the log, and follows its end unless the reader has scrolled away from it. */
function following(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

let drawing = false;

function drawAnswerSoon() {
  if (drawing) return;
  drawing = true;
  const draw = () => {
    if (!drawing) return;
    drawing = false;
    const element = [...$("log").children].find((child) => live && child.message === live.message);
    if (element) following(() => show(element.querySelector(".body"), live.message.content));
  };
  requestAnimationFrame(draw);
}

function rate(tokens, seconds) {
  if (!(tokens > 0 && seconds > 0)) return "";
  const perSecond = tokens / seconds;
  return perSecond >= 1 ? `${perSecond.toFixed(1)} tok/s` : `${(1 / perSecond).toFixed(1)} s a token`;
}

function duration(ms) {
  const seconds = Math.floor(ms / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(seconds / 3600);
  const rest = `${hours ? two(Math.floor(seconds / 60) % 60) : Math.floor(seconds / 60)}:${two(seconds % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

function spell(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : duration(seconds * 1000);
}

/** A line for what the page itself has to say. */
function tell(text) {
  $("status").textContent = text;
}

function drawState() {
  const { progress } = live;
  const parts = [];
  if (progress?.queue_place > 0) {
    parts.push(`place ${progress.queue_place} in the queue`);
  } else if (!live.tokens) {
    const read = progress?.prompt_tokens_done;
    parts.push(read ? `reading: ${read} of ${progress.prompt_tokens} tokens` : "reading");
  } else {
    parts.push(`${live.tokens} tokens`, rate(live.tokens - 1, (live.last - live.first) / 1000));
  }
  const inPass = progress?.layer > 0 && !progress.queue_place;
  if (inPass) parts.push(`layer ${progress.layer} of ${progress.layers}`);
  $("layers").hidden = !inPass;
  if (inPass) Object.assign($("layers"), { max: progress.layers, value: progress.layer });
  const text = parts.filter(Boolean).join(" · ");
  if ($("status").textContent !== text) tell(text);
  $("timer").textContent = duration(Date.now() - live.started);
}

function drawComposer() {
  $("send").hidden = live !== null;
  $("stop").hidden = live === null;
  $("log").setAttribute("aria-busy", String(live !== null)); // readers wait for the whole answer
  // The status changes many times a second: it is read aloud only when nothing else goes on.
  $("status").setAttribute("aria-live", live ? "off" : "polite");
  if (!live) {
    $("layers").hidden = true;
    $("timer").textContent = "";
  }
}

function fitText() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // there is no clipboard for pages of plain HTTP
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// --- the server ---

function headers() {
  const all = { "content-type": "application/json" };
  if (settings.api_key) all.authorization = `Bearer ${settings.api_key}`;
  return all;
}

/** The error of an answer that is none, for a person. */
async function problemOf(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    message = response.statusText || "no reason given";
  }
  if (response.status === 401) openSettings("The server asks for an API key.", "api_key");
  const wait = response.headers.get("retry-after");
  return `${response.status}: ${message}${wait ? ` (try again in ${wait} s)` : ""}`;
}

/** Server-sent events of a response, as the values in their data; ends at [DONE]. */
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the connection ended before the answer did");
      buffer += decoder.decode(value, { stream: true });
      const lines = buffer.split(/\r?\n/);
      buffer = lines.pop();
      for (const line of lines) { // each event here is one line of data; others are comments that keep it open
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading wants no more of it
  }
}

/** Messages for the server. Turns that got no answer are left out: templates want them to alternate. */
function history(messages) {
  const sent = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  messages.forEach((message, index) => {
    const next = messages[index + 1];
    const lost = message.role === "user" ? next && !next.content : !message.content;
    if (!lost) sent.push({ role: message.role, content: message.content });
  });
  return sent;
}

function requestOf(messages) {
  const request = {
    messages: history(messages),
    stream: true,
    stream_options: { include_usage: true, include_progress: true },
  };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (settings[name] !== undefined && settings[name] !== "") request[name] = Number(settings[name]);
  }
  return request;
}

/** Writes an answer to the last message of a conversation. */
async function answer(conversation) {
  const request = requestOf(conversation.messages);
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  conversations.set(conversation.id, conversation);
  const mine = { conversation, message, abort: new AbortController(), started: Date.now(), tokens: 0, progress: null };
  live = mine;
  keep(conversation);
  drawList();
  drawLog();
  drawComposer();
  drawState();
  const clock = setInterval(() => {
    drawState();
    if (conversations.has(conversation.id)) keep(conversation); // what was written survives a reload
  }, 1000);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request), signal: mine.abort.signal,
    });
    if (!response.ok) throw new Error(await problemOf(response));
    for await (const chunk of events(response)) take(chunk, mine);
  } catch (error) {
    if (leaving) mine.finish = "left"; // a reload ends requests before it ends scripts
    else if (mine.abort.signal.aborted) mine.finish = "stopped";
    else message.problem = error instanceof TypeError ? "the connection to the server failed" : error.message;
  } finally {
    clearInterval(clock);
    live = null;
  }
  message.stats = statsOf(mine);
  if (conversations.has(conversation.id)) keep(conversation); // else it was deleted meanwhile
  tell("");
  drawComposer();
  drawList();
  const element = [...$("log").children].find((child) => child.message === message);
  if (element) following(() => { show(element.querySelector(".body"), message.content); drawFoot(element); });
}

function take(chunk, mine) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.usage) Object.assign(mine, { usage: chunk.usage, times: chunk.pyllama });
  if (chunk.progress) {
    [mine.progress] = chunk.progress;
    mine.tokens = Math.max(mine.tokens, mine.progress.completion_tokens);
  }
  const [choice] = chunk.choices || [];
  if (choice?.delta?.content) {
    const now = Date.now();
    mine.first ??= now;
    mine.last = now;
    mine.tokens += 1; // a chunk is a token, nearly always; the server's own count comes at the end
    mine.progress = null; // of a token that is written by now
    mine.message.content += choice.delta.content;
    drawAnswerSoon();
  }
  if (choice?.finish_reason) mine.finish = choice.finish_reason;
  drawState();
}

function statsOf(mine) {
  const ending = { length: "cut: no tokens left", stopped: "stopped", left: "not finished" }[mine.finish];
  const tokens = mine.usage ? mine.usage.completion_tokens : mine.tokens;
  if (!tokens) return ending || "";
  const times = mine.times;
  const seconds = times ? times.total_s - times.first_token_s : (mine.last - mine.first) / 1000;
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`, rate(tokens - 1, seconds)];
  if (times) parts.push(`first after ${spell(times.first_token_s)}`);
  if (mine.usage?.prompt_tokens) parts.push(`prompt ${mine.usage.prompt_tokens}${context ? ` of ${context}` : ""}`);
  parts.push(ending);
  return parts.filter(Boolean).join(" · ");
}

async function greet() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (!response.ok) return tell(await problemOf(response));
    const [model] = (await response.json()).data;
    $("model").textContent = model.id;
    context = model.max_model_len || null;
    if (model.pyllama?.chat === false) tell("This model has no chat template: it continues texts, under /v1/completions.");
    else tell("");
  } catch {
    tell("The server cannot be reached.");
  }
}

// --- what a person does ---

function send() {
  const text = $("text").value;
  if (live || !text.trim()) return;
  $("text").value = "";
  fitText();
  current.messages.push({ role: "user", content: text });
  answer(current);
}

function stop() {
  live?.abort.abort();
  $("text").focus();
}

function again() {
  if (live) return;
  if (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  answer(current);
  $("text").focus();
}

function choose(conversation) {
  current = conversation;
  openSidebar(false);
  drawList();
  drawLog();
  $("text").focus();
}

function remove(conversation) {
  if (live?.conversation === conversation) live.abort.abort();
  conversations.delete(conversation.id);
  forget(PREFIX + conversation.id);
  if (conversation === current) current = newConversation();
  drawList();
  drawLog();
}

let confirmed = null;

function ask(question, action) {
  $("question").textContent = question;
  confirmed = action;
  $("confirm").showModal();
}

function askToDelete(conversation) {
  ask(`Delete "${title(conversation)}"?`, () => remove(conversation));
}

function openSidebar(open) {
  $("sidebar").classList.toggle("open", open);
  $("shade").hidden = !open;
  $("menu").setAttribute("aria-expanded", String(open));
  if (open) $("new").focus();
}

const FIELDS = ["system", "temperature", "top_p", "max_tokens", "seed", "api_key"];

function openSettings(problem = "", field = "system") {
  const form = $("settings-form");
  for (const name of FIELDS) form.elements[name].value = settings[name] ?? "";
  $("settings-problem").textContent = problem;
  if (!$("settings").open) $("settings").showModal();
  form.elements[field].focus();
}

function saveSettings() {
  const form = $("settings-form");
  for (const name of FIELDS) {
    const input = form.elements[name];
    if (!input.checkValidity()) {
      $("settings-problem").textContent = `${input.labels[0].textContent.trim()}: ${input.validationMessage}`;
      return input.focus();
    }
  }
  settings = {};
  for (const name of FIELDS) {
    const value = form.elements[name].value;
    if (value.trim()) settings[name] = name === "api_key" ? value.trim() : value;
  }
  save(SETTINGS, settings);
  $("settings").close();
  greet();
}

function listen(id, event, action) {
  $(id).addEventListener(event, action);
}

listen("composer", "submit", (event) => { event.preventDefault(); send(); });
listen("stop", "click", stop);
listen("text", "input", fitText);
listen("text", "keydown", (event) => {
  // On a phone Enter is the only way to a new line. While a composed character is chosen, it is that choice.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  send();
});
listen("new", "click", () => choose(newConversation()));
listen("menu", "click", () => openSidebar(true));
listen("shade", "click", () => openSidebar(false));
listen("settings-open", "click", () => openSettings());
listen("settings-cancel", "click", () => $("settings").close());
listen("settings-form", "submit", (event) => { event.preventDefault(); saveSettings(); });
listen("settings", "close", () => $("text").focus());
listen("forget", "click", () => ask("Delete all conversations?", () => {
  [...conversations.values()].forEach(remove);
  $("settings").close();
}));
listen("confirm-no", "click", () => $("confirm").close());
listen("confirm-form", "submit", (event) => { event.preventDefault(); $("confirm").close(); confirmed?.(); });

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return; // a dialog closes itself
  if ($("sidebar").classList.contains("open")) {
    openSidebar(false);
    $("menu").focus();
  } else if (live) {
    stop();
  }
});

// Another tab wrote or deleted something.
addEventListener("storage", (event) => {
  if (event.key !== null && !event.key.startsWith(PREFIX)) {
    settings = load(SETTINGS) || {};
    return;
  }
  const writing = live?.conversation;
  conversations = storedConversations();
  if (writing) conversations.set(writing.id, writing);
  const known = conversations.get(current.id);
  if (known && known !== current) {
    current = known;
    following(drawLog);
  }
  drawList();
});

addEventListener("pagehide", () => {
  leaving = true;
  if (live) keep(live.conversation);
});
addEventListener("pageshow", () => (leaving = false));

function begin() {
  const latest = [...conversations.values()].sort((a, b) => b.changed - a.changed)[0];
  if (latest) current = latest;
  drawList();
  drawLog();
  drawComposer();
  fitText();
  greet();
}

begin();
