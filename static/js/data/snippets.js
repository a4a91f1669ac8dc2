// Code that uses an event from elsewhere. An event's name is percent-encoded in URLs, and escaped in HTML.

import { SERVER_URL } from "./api.js";

const WRITE_KEY = "Authorization: Bearer <write key>";
const READ_KEY = "Authorization: Bearer <read key>";
// It outlasts a restart. A script must fail unless the hit was counted: curl also succeeds at an error, or at a page of a proxy.
const CURL = "curl -sS -m 5 --retry 30 --retry-max-time 30 --retry-all-errors";
const COUNTED = `| awk '1; /"ack"/ {ok=1} END {exit !ok}'`;

/** Shells, Markdown and Python leave such a name as it is. @param {string} name */
export const encodeName = (name) => encodeURIComponent(name).replace(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16)}`);

/** @param {string} path @param {Record<string, string|string[]>} [query] empty values are left out */
export function urlOf(path, query = {}) {
  const pairs = Object.entries(query).flatMap(([key, value]) => [value].flat().filter(Boolean).map((one) => [key, one]));
  const search = new URLSearchParams(pairs).toString();
  return SERVER_URL + path + (search && `?${search}`);
}

const attribute = (/** @type {string} */ text) => text.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
const hitUrl = (/** @type {string} */ name) => urlOf(`/event/${encodeName(name)}`);

/** @param {string} name @param {boolean} keyed whether the server requires a key */
export const curlHit = (name, keyed) => [
  CURL, '-H "Idempotency-Key: $(openssl rand -hex 16)"', ...(keyed ? [`-H '${WRITE_KEY}'`] : []), `-X POST '${hitUrl(name)}'`,
].join(" \\\n  ");

/** @param {string} name @param {boolean} keyed whether the server requires a key */
export const curlStream = (name, keyed) => `curl -N ${keyed ? `-H '${READ_KEY}' ` : ""}'${urlOf(`/stream?event=${encodeName(name)}`)}'`;

const loadScript = () => `<script src="${urlOf("/static/tally-1.js")}" defer></script>`;
const button = (/** @type {string} */ name) => `<button data-tally-hit="${attribute(name)}">Click</button>`;
export const showNumber = (/** @type {string} */ name) => `${loadScript()}\n<span data-tally-count="${attribute(name)}"></span>`;
export const countClick = (/** @type {string} */ name) => `${loadScript()}\n${button(name)}`;
export const webPage = (/** @type {string} */ name) => `${showNumber(name)}\n${button(name)}`;

/** @param {string} name @param {boolean} keyed whether the server requires a key */
export const python = (name, keyed) => `import time, urllib.request, uuid

URL = "${hitUrl(name)}"

def count(tries=6):
    hit = urllib.request.Request(URL, method="POST")
    hit.add_header("Idempotency-Key", uuid.uuid4().hex)${keyed ? `\n    hit.add_header("Authorization", "Bearer <write key>")` : ""}
    for retry in range(tries):
        try:
            return urllib.request.urlopen(hit, timeout=5).read()
        except OSError:
            if retry == tries - 1:
                raise
            time.sleep(0.1 * 2**retry)

print(count())`;

/** A step of GitHub Actions. @param {string} name @param {boolean} keyed whether the server requires a key */
export const ciStep = (name, keyed) => `- name: Count this run
  continue-on-error: true${keyed ? "\n  env:\n    TALLY_KEY: ${{ secrets.TALLY_KEY }}" : ""}
  run: |
    ${CURL} \\
      -H "Idempotency-Key: $GITHUB_RUN_ID-$GITHUB_RUN_ATTEMPT-$GITHUB_JOB" \\
      ${keyed ? '-H "Authorization: Bearer $TALLY_KEY" ' : ""}-X POST '${hitUrl(name)}' ${COUNTED}`;

/** @param {string} url of a badge @param {string} label */
export const badgeMarkdown = (url, label) => `![${label.replace(/[[\]\\`<&!*_]/g, "\\$&")}](${url})`;

/** @param {string} url of a badge @param {string} label */
export const badgeHtml = (url, label) => `<img src="${attribute(url)}" alt="${attribute(label)}">`;

/** @param {string} url of an embed @param {string} name of its event */
export const frame = (url, name) =>
  `<iframe src="${attribute(url)}" width="200" height="100" style="border:0;color-scheme:light" title="${attribute(name)}"></iframe>`;
