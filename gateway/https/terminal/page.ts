import { type Html, html } from '../pages/html.ts'
import { assetPath } from './assets.ts'

export type TerminalPage = {
  domain: string
  machine: string
  session: string
  /** what a person without script types instead */
  command: string
}

/** The page of a web terminal; all of it is built by its script but for the frame. */
export function terminalPage({ domain, machine, session, command }: TerminalPage): string {
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>${machine} · ${domain}</title>
<link rel="stylesheet" href="${assetPath('terminal.css')}">
${PRELOADED.map((name) => html`<link rel="modulepreload" href="${assetPath(name)}">\n`)}<script type="module" src="${assetPath('main.ts')}"></script>
</head>
<body data-machine="${machine}" data-session="${session}" data-state="connecting">
<header>
<a id="machines" href="/">Machines</a>
<h1 class="mono">${machine}</h1>
<details id="sessions">
<summary><span class="mono">${session}</span></summary>
<div>
<ul id="session-list" class="mono"></ul>
<form id="new-session">
<label for="session-name">Another session</label>
<input id="session-name" required maxlength="64" pattern="[A-Za-z0-9_][A-Za-z0-9._\\-]*" autocomplete="off" autocapitalize="none" spellcheck="false" title="Letters, digits, dots, hyphens and underscores">
<button>Open</button>
</form>
<label class="choice"><input id="reader" type="checkbox"> For screen readers</label>
<p class="dim">A session goes on in the machine when this page is closed. <kbd>exit</kbd> ends it. <kbd>Shift+F6</kbd> takes the keyboard from the terminal to this bar.</p>
</div>
</details>
<p id="state" role="status"></p>
</header>
<main>
<div id="screen"></div>
<div id="notice" hidden>
<p id="notice-text" aria-hidden="true"></p>
<pre hidden><code id="command"></code></pre>
<button id="go-on" type="button" hidden></button>
</div>
<p id="note" role="status"></p>
<noscript><p>A terminal in a page needs its script. The same over SSH:</p><pre><code>${command}</code></pre></noscript>
</main>
<div id="keys" role="toolbar" aria-label="Keys">
${KEYS.map(([value, text, label]) => key(value, text, label))}</div>
<dialog id="copying" aria-label="Text of the terminal">
<textarea id="text" readonly aria-label="Text of the terminal" autocapitalize="none" spellcheck="false"></textarea>
<form method="dialog"><button id="copy-all" type="button">Copy</button><button class="plain">Close</button></form>
</dialog>
</body>
</html>
`.text
}

const PRELOADED = [
  ...['xterm.js', 'addon-fit.js', 'connection.ts', 'keys.ts', 'menu.ts'],
  ...['page.ts', 'protocol.ts', 'sentence.ts', 'themes.ts'],
]

const KEYS: [value: string, text: string, label?: string][] = [
  ['escape', 'Esc'],
  ['tab', 'Tab'],
  ['control', 'Ctrl'],
  ['left', '←', 'Left'],
  ['down', '↓', 'Down'],
  ['up', '↑', 'Up'],
  ['right', '→', 'Right'],
  ['paste', 'Paste'],
  ['text', 'Copy'],
]

function key(value: string, text: string, label?: string): Html {
  return html`<button type="button" value="${value}"${label !== undefined && html` aria-label="${label}"`}${value === 'control' && html` aria-pressed="false"`}>${text}</button>\n`
}
