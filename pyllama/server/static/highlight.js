// Source code to nodes: comments, strings, numbers and keywords of the languages that models write most.
"use strict";

const LONGEST = 50_000; // characters that are coloured

const words = (text) => new Set(text.split(" "));
const C_WORDS =
  "auto bool break case catch char class const continue default delete do double else enum extends extern false final " +
  "finally float for func fn goto if impl implements import in int interface let long match mod move mut namespace new nil " +
  "null nullptr operator package private protected pub public range ref return self short signed sizeof static struct " +
  "super switch template this throw trait true try type typedef typename union unsafe unsigned use using var virtual void " +
  "volatile where while async await chan defer go map select string u8 u16 u32 u64 usize i8 i16 i32 i64 f32 f64 final override";
const C_STYLE = { comment: "//.*|/\\*[^]*?(?:\\*/|$)", keywords: words(C_WORDS) };
const JAVASCRIPT = {
  comment: C_STYLE.comment,
  keywords: words(
    "as async await break case catch class const continue debugger default delete do else enum export extends false finally " +
    "for from function get if implements import in instanceof interface let new null of private protected public readonly " +
    "return set static super switch this throw true try type typeof undefined var void while with yield"
  ),
};
const PYTHON = {
  comment: "#.*",
  strings: '"""[^]*?(?:"""|$)|\'\'\'[^]*?(?:\'\'\'|$)|',
  keywords: words(
    "False None True and as assert async await break case class continue def del elif else except finally for from global if " +
    "import in is lambda match nonlocal not or pass raise return self try while with yield"
  ),
};
const SHELL = {
  comment: "#.*",
  keywords: words("case cd do done echo elif else esac exit export fi for function if in local read return set sudo then until while"),
};
const SQL = {
  comment: "--.*|/\\*[^]*?(?:\\*/|$)",
  any_case: true,
  keywords: words(
    "add all alter and as asc between by case check column constraint create cross default delete desc distinct drop else end " +
    "exists foreign from full group having if in index inner insert into is join key left like limit not null offset on or " +
    "order outer primary references right select set table then union unique update values view when where with"
  ),
};
const DATA = { comment: "#.*", keywords: words("true false null yes no on off") };
const MARKUP = { comment: "<!--[^]*?(?:-->|$)", tags: true, keywords: words("") };

const LANGUAGES = {
  js: JAVASCRIPT, javascript: JAVASCRIPT, jsx: JAVASCRIPT, ts: JAVASCRIPT, typescript: JAVASCRIPT, tsx: JAVASCRIPT,
  python: PYTHON, py: PYTHON, cython: PYTHON, bash: SHELL, sh: SHELL, shell: SHELL, zsh: SHELL, console: SHELL,
  sql: SQL, json: { ...DATA, comment: "(?!)" }, yaml: DATA, yml: DATA, toml: DATA, ini: DATA,
  html: MARKUP, xml: MARKUP, svg: MARKUP, css: { comment: C_STYLE.comment, keywords: words("important") },
};
for (const name of ["c", "cpp", "c++", "h", "java", "rust", "rs", "go", "csharp", "cs", "kotlin", "swift", "php"]) {
  LANGUAGES[name] = C_STYLE;
}

/** Nodes of a source text; one of an unknown language is text alone. */
function highlighted(code, name) {
  const key = name.toLowerCase();
  const language = Object.hasOwn(LANGUAGES, key) ? LANGUAGES[key] : null;
  if (!language || code.length > LONGEST) return [code];
  const { comment, strings = "", tags, any_case, keywords } = language;
  const tag = tags ? "|(</?[\\w:-]+|/?>)" : "|((?!))";
  const token = new RegExp(
    `(${comment})|(${strings}"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'?|\`(?:\\\\[^]|[^\`\\\\])*\`?)` +
    `|\\b(\\d[\\w.]*)|([A-Za-z_]\\w*)${tag}`, "g"
  );
  const nodes = [];
  let last = 0;
  for (const found of code.matchAll(token)) {
    const [text, isComment, isString, isNumber, word, isTag] = found;
    const known = word && keywords.has(any_case ? word.toLowerCase() : word);
    const kind = isComment ? "comment" : isString ? "string" : isNumber ? "number" : known || isTag ? "keyword" : null;
    if (!kind) continue;
    if (found.index > last) nodes.push(code.slice(last, found.index));
    nodes.push(make("span", { className: kind }, text));
    last = found.index + text.length;
  }
  nodes.push(code.slice(last));
  return nodes;
}
