// The chat page: /v1/chat/completions as it streams, conversations kept in this browser's localStorage.
// What the model writes becomes text nodes and elements of markdown.js, never markup; the Content-Security-Policy holds
// that, too.
"use strict";

const $ = (id) => document.getElementById(id);

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

let conversations = storedConversations(); // id -> {id, changed, name, messages: [{role, content, thought, stats, problem}]}
let settings = load(SETTINGS) || {};
let current = newConversation(); // what is shown; kept once it has a message
// The answers being written, by conversation: {conversation, message, abort, started, first, tokens, progress}
const running = new Map();
let leaving = false; // for another page, or for this one again
let context = null; // positions of the model's context

function newConversation() {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, changed: 0, messages: [] };
}

/** The answer that is being written in the conversation that is shown. */
const live = () => running.get(current.id) ?? null;

function title(conversation) {
  if (conversation.name) return conversation.name;
  const first = conversation.messages.find((message) => message.role === "user");
  return first ? first.content.trim().split("\n")[0].slice(0, 80) : "New conversation";
}

// --- an answer's text to elements: what the model thought, and Markdown ---

/** [{kind, source, ...}] of what is said, and what the server has told apart from it as thought. */
function partsOf(text, thought = "") {
  const found = [];
  // In conversations kept from before it did; a template may have written the opening tag itself.
  const tagged = /^\s*<think>([^]*?)(?:<\/think>|$)/.exec(text) ?? /^([^]*?)<\/think>/.exec(text);
  if (!thought && tagged) {
    [, thought] = tagged;
    text = text.slice(tagged[0].length);
  }
  if (thought.trim()) found.push({ kind: "thought", source: thought.trim() });
  const blocks = blocksOf(text.split("\n")).map((block) => ({ ...block, source: block.lines.join("\n") }));
  return found.concat(blocks);
}

function partElement(part) {
  if (part.kind !== "thought") return elementOf(part);
  return make("details", {}, make("summary", {}, part.label), make("p", {}, part.source));
}

/** Shows an answer in an element; blocks that stay as they are keep their elements, and so a selection in them. */
function show(element, message) {
  const wanted = partsOf(message.content, message.thought);
  // On a board minutes may go by before the first word that is said.
  if (wanted[0]?.kind === "thought") {
    wanted[0].label = wanted.length === 1 && message === live()?.message ? "Thinking …" : "Thoughts";
  }
  wanted.forEach((part, index) => {
    const old = element.children[index];
    if (old && old.kind === part.kind && old.source === part.source && old.label === part.label) return;
    const { kind, source, label } = part;
    const fresh = Object.assign(partElement(part), { kind, source, label });
    if (old?.open) fresh.open = true;
    if (old) old.replaceWith(fresh);
    else element.append(fresh);
  });
  while (element.children.length > wanted.length) element.lastChild.remove();
}

// --- drawing ---

function drawList() {
  const wanted = $("search").value.trim().toLowerCase();
  const has = (conversation) => [title(conversation), ...conversation.messages.map((message) => message.content)]
    .some((text) => text.toLowerCase().includes(wanted));
  const sorted = [...conversations.values()].filter((one) => !wanted || has(one)).sort((a, b) => b.changed - a.changed);
  $("conversations").replaceChildren(...sorted.map(listElementOf));
  $("search").hidden = conversations.size < 2;
}

function listElementOf(conversation) {
  const name = title(conversation);
  const button = (className, text, label, onclick) => {
    const made = make("button", { type: "button", className, title: label, onclick }, text);
    made.setAttribute("aria-label", `${label}: ${name}`);
    return made;
  };
  const open = make("button", { type: "button", className: "open", title: name, onclick: () => choose(conversation) }, name);
  if (conversation === current) open.setAttribute("aria-current", "true");
  const item = make("li", {}, open, button("edit", "✎", "Rename", () => rename(conversation, item)),
    button("delete", "×", "Delete", () => askToDelete(conversation)));
  item.classList.toggle("current", conversation === current);
  item.classList.toggle("running", running.has(conversation.id));
  return item;
}

const EXAMPLES = [
  "Explain why the sky is blue to a ten-year-old.",
  "Write a Python function that tells whether a text is a palindrome.",
  "Compare tea and coffee in a small table.",
];

function drawLog() {
  const log = $("log");
  log.replaceChildren(...current.messages.map(messageElement));
  if (!current.messages.length) {
    const hint = byTouch() ? "Ask something, or try one of these." :
      "Ask something: Enter sends, Shift+Enter starts a new line, Esc stops an answer. Or try one of these.";
    const ask = (text) => make("button", { type: "button", className: "plain example", onclick: () => sendText(text) }, text);
    log.append(make("div", { className: "empty" }, make("p", {}, hint), ...EXAMPLES.map(ask)));
  }
  log.scrollTop = log.scrollHeight;
  $("export").disabled = !current.messages.length;
  document.title = current.messages.length ? `${title(current)} – pyllama` : "pyllama";
}

function messageElement(message) {
  const body = make("div", { className: "body" });
  if (message.role === "user") body.append(make("p", {}, message.content)); // as it was written
  else show(body, message);
  const foot = make("div", { className: "foot" });
  const who = make("div", { className: "who" }, message.role === "user" ? "You" : "Model");
  const element = make("article", { className: `message ${message.role}` }, who, body, foot);
  element.message = message;
  drawFoot(element);
  return element;
}

const elementOfMessage = (message) => [...$("log").children].find((child) => child.message === message);

function drawFoot(element) {
  const { message } = element;
  const foot = element.querySelector(".foot");
  foot.replaceChildren();
  const writing = live();
  if (writing?.message === message) return;
  const button = (text, onclick) => foot.append(make("button", { type: "button", className: "plain small", onclick }, text));
  if (message.content) button("Copy", (event) => copy(message.content, event.target));
  if (message.role === "user") {
    if (!writing) button("Edit", () => edit(element));
    return;
  }
  if (!writing && message === current.messages.at(-1)) button(message.content ? "Regenerate" : "Try again", again);
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
  requestAnimationFrame(() => {
    drawing = false;
    const message = live()?.message;
    const element = message && elementOfMessage(message);
    if (element) following(() => show(element.querySelector(".body"), message));
  });
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
  const writing = live();
  if (!writing) return;
  const { progress } = writing;
  const parts = [];
  if (progress?.queue_place > 0) {
    parts.push(`place ${progress.queue_place} in the queue`);
  } else if (!writing.tokens) {
    const read = progress?.prompt_tokens_done;
    parts.push(read ? `reading: ${read} of ${progress.prompt_tokens} tokens` : "reading");
  } else {
    parts.push(`${writing.tokens} tokens`, rate(writing.tokens - 1, (writing.last - writing.first) / 1000));
  }
  const inPass = progress?.layer > 0 && !progress.queue_place;
  if (inPass) parts.push(`layer ${progress.layer} of ${progress.layers}`);
  $("layers").hidden = !inPass;
  if (inPass) Object.assign($("layers"), { max: progress.layers, value: progress.layer });
  const text = parts.filter(Boolean).join(" · ");
  if ($("status").textContent !== text) tell(text);
  $("timer").textContent = duration(Date.now() - writing.started);
}

function drawComposer() {
  const writing = live();
  $("send").hidden = writing !== null;
  $("stop").hidden = writing === null;
  $("log").setAttribute("aria-busy", String(writing !== null)); // readers wait for the whole answer
  // The status changes many times a second: it is read aloud only when nothing else goes on.
  $("status").setAttribute("aria-live", writing ? "off" : "polite");
  if (!writing) {
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
  if (response.status === 401) {
    askForKey();
    return "the server asks for an API key: Settings, API key"; // the server's own words are of headers
  }
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
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"]) {
    if (settings[name] !== undefined && settings[name] !== "") request[name] = Number(settings[name]);
  }
  if (settings.thinking) request.chat_template_kwargs = { enable_thinking: settings.thinking === "on" };
  return request;
}

/** Writes an answer to the last message of a conversation. */
async function answer(conversation) {
  const request = requestOf(conversation.messages);
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  conversations.set(conversation.id, conversation);
  const mine = { conversation, message, abort: new AbortController(), started: Date.now(), tokens: 0, progress: null };
  running.set(conversation.id, mine);
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
    running.delete(conversation.id);
  }
  message.stats = statsOf(mine);
  if (conversations.has(conversation.id)) keep(conversation); // else it was deleted meanwhile
  drawList();
  if (conversation !== current) return;
  tell("");
  drawComposer();
  following(() => {
    const element = elementOfMessage(message);
    if (element) show(element.querySelector(".body"), message);
    for (const one of $("log").children) if (one.message) drawFoot(one);
  });
}

function take(chunk, mine) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.usage) Object.assign(mine, { usage: chunk.usage, times: chunk.pyllama });
  if (chunk.progress) {
    [mine.progress] = chunk.progress;
    mine.tokens = Math.max(mine.tokens, mine.progress.completion_tokens);
  }
  const [choice] = chunk.choices || [];
  const { content = "", reasoning_content: thought = "" } = choice?.delta ?? {};
  if (content || thought) {
    const now = Date.now();
    mine.first ??= now;
    mine.last = now;
    mine.tokens += 1; // a chunk is a token, nearly always; the server's own count comes at the end
    mine.progress = null; // of a token that is written by now
    mine.message.content += content;
    if (thought) mine.message.thought = (mine.message.thought ?? "") + thought;
    if (mine === live()) drawAnswerSoon();
  }
  if (choice?.finish_reason) mine.finish = choice.finish_reason;
  if (mine === live()) drawState();
}

function statsOf(mine) {
  const ending = { length: "cut: no tokens left", stopped: "stopped", left: "not finished" }[mine.finish];
  const tokens = mine.usage ? mine.usage.completion_tokens : mine.tokens;
  if (!tokens) return ending || "";
  const times = mine.times;
  const seconds = times ? times.total_s - times.first_token_s : (mine.last - mine.first) / 1000;
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`, rate(tokens - 1, seconds)];
  const accepted = mine.usage?.completion_tokens_details?.accepted_prediction_tokens;
  if (accepted) parts.push(`${accepted} of them drafted`);
  // In a few tokens more than one a pass: nothing to tell.
  if (accepted > tokens / 10) parts.push(`${(tokens / (tokens - accepted)).toFixed(1)} a pass`);
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
    $("context").textContent = context ? `context ${context}` : "";
    if (model.pyllama?.chat === false) tell("This model has no chat template: it continues texts, under /v1/completions. serve --chat-template gives it one.");
    else tell("");
  } catch {
    tell("The server cannot be reached.");
  }
}

// --- what a person does ---

const byTouch = () => matchMedia("(pointer: coarse)").matches;

function send() {
  const text = $("text").value;
  if (live() || !text.trim()) return;
  $("text").value = "";
  fitText();
  sendText(text);
}

function sendText(text) {
  current.messages.push({ role: "user", content: text });
  answer(current);
}

function stop() {
  live()?.abort.abort();
  $("text").focus();
}

function again() {
  if (live()) return;
  if (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  answer(current);
  $("text").focus();
}

/** Turns a person's message into a field; sending it ends the conversation there and goes on from it. */
function edit(element) {
  const { message } = element;
  const body = element.querySelector(".body");
  const text = make("textarea", { value: message.content, rows: Math.min(12, message.content.split("\n").length + 1) });
  text.setAttribute("aria-label", "Edit the message");
  const done = () => {
    body.classList.remove("editing");
    body.replaceChildren(make("p", {}, message.content));
    drawFoot(element);
    $("text").focus();
  };
  const submit = () => {
    if (live() || !text.value.trim()) return;
    current.messages.splice(current.messages.indexOf(message));
    sendText(text.value);
    $("text").focus();
  };
  const key = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      done();
    } else if (sends(event)) {
      event.preventDefault();
      submit();
    }
  };
  text.addEventListener("keydown", key);
  body.classList.add("editing");
  body.replaceChildren(text);
  element.querySelector(".foot").replaceChildren(
    make("button", { type: "button", className: "small", onclick: submit }, "Send"),
    make("button", { type: "button", className: "plain small", onclick: done }, "Cancel"),
  );
  text.focus();
}

function rename(conversation, item) {
  const field = make("input", { value: title(conversation), maxLength: 80 });
  field.setAttribute("aria-label", "New name");
  let kept = false;
  const done = (name) => {
    if (kept) return; // leaving the field comes after Enter, too
    kept = true;
    if (name?.trim()) {
      conversation.name = name.trim();
      save(PREFIX + conversation.id, conversation); // not newer for it
    }
    drawList();
    if (conversation === current) document.title = `${title(current)} – pyllama`;
  };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") done(field.value);
    if (event.key === "Escape") done(null);
  });
  field.addEventListener("blur", () => done(field.value));
  item.replaceChildren(field);
  field.select();
}

/** The conversation as a file of Markdown. */
function exportConversation() {
  const parts = current.messages.map((message) => `## ${message.role === "user" ? "You" : "Model"}\n\n${message.content.trim()}\n`);
  const text = [`# ${title(current)}\n`, ...parts].join("\n");
  const url = URL.createObjectURL(new Blob([text], { type: "text/markdown" }));
  const name = title(current).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  const link = make("a", { href: url, download: `${name || "conversation"}.md` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function choose(conversation) {
  current = conversation;
  openSidebar(false);
  drawList();
  drawLog();
  tell("");
  drawComposer();
  drawState();
  $("text").focus();
}

function remove(conversation) {
  running.get(conversation.id)?.abort.abort();
  conversations.delete(conversation.id);
  forget(PREFIX + conversation.id);
  if (conversation === current) current = newConversation();
  drawList();
  drawLog();
  drawComposer();
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

const FIELDS = ["system", "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "thinking"];

function openSettings() {
  const form = $("settings-form");
  for (const name of FIELDS) form.elements[name].value = settings[name] ?? "";
  $("settings-problem").textContent = "";
  $("settings").showModal();
  form.elements.system.focus();
}

function askForKey() {
  const problem = settings.api_key ? "The server does not know this key." : "";
  $("key-problem").textContent = problem;
  $("api_key").value = settings.api_key ?? "";
  if (!$("key").open) $("key").showModal();
  $("api_key").select();
}

/** Keeps a key that the server takes; says so of one that it does not. */
async function tryKey() {
  const key = $("api_key").value.trim();
  if (!key) return;
  $("key-problem").textContent = "";
  try {
    // What no header can hold is no key, and fails here like a server that is gone.
    const response = await fetch("v1/models", { headers: { authorization: `Bearer ${key}` } });
    if (response.status === 401) {
      $("key-problem").textContent = "This key is wrong.";
      return $("api_key").select();
    }
  } catch {
    $("key-problem").textContent = /^[\x20-\x7e]+$/.test(key) ? "The server cannot be reached." : "This key is wrong.";
    return;
  }
  settings.api_key = key;
  save(SETTINGS, settings);
  $("key").close();
  greet();
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
  settings = settings.api_key ? { api_key: settings.api_key } : {};
  for (const name of FIELDS) {
    const value = form.elements[name].value;
    if (value.trim()) settings[name] = value;
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
// On a phone Enter is the only way to a new line. While a composed character is chosen, it is that choice.
const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && !byTouch();
listen("text", "keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  send();
});
listen("search", "input", drawList);
listen("export", "click", exportConversation);
listen("key-open", "click", () => { $("settings").close(); askForKey(); });
listen("key-form", "submit", (event) => { event.preventDefault(); tryKey(); });
listen("key-cancel", "click", () => $("key").close());
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
  } else if (live()) {
    stop();
  }
});

// Another tab wrote or deleted something.
addEventListener("storage", (event) => {
  if (event.key !== null && !event.key.startsWith(PREFIX)) {
    settings = load(SETTINGS) || {};
    return;
  }
  conversations = storedConversations();
  for (const { conversation } of running.values()) conversations.set(conversation.id, conversation);
  const known = conversations.get(current.id);
  if (known && known !== current) {
    current = known;
    following(drawLog);
  }
  drawList();
});

addEventListener("pagehide", () => {
  leaving = true;
  for (const { conversation } of running.values()) keep(conversation);
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
