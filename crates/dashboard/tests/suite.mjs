// What the page of a suite does in a browser: run by hand, since no build here has one.
//   npm install playwright-core
//   cargo run --release -p dashboard --example suite -- page.html
//   node crates/dashboard/tests/suite.mjs /path/to/chromium /path/to/page.html [screenshot folder]
// Any page with at least two sites, ten SAEs, positions and subsets will do.
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [chrome, file, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: chrome, args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
const wrong = [];
page.on("pageerror", (e) => wrong.push(e.message));
page.on("console", (m) => wrong.push(m.text()));
page.on("dialog", (d) => { wrong.push("a dialog"); d.dismiss(); });
page.on("request", (r) => { if (!/^(file|data|blob):/.test(r.url())) wrong.push("a request: " + r.url()); });
const began = Date.now();
await page.goto(pathToFileURL(file).href);
console.log(`drawn after ${Date.now() - began} ms`);

const data = await page.evaluate(() => JSON.parse(document.getElementById("data").textContent));
const traces = (id) => page.evaluate((id) => document.getElementById(id).data?.length, id);
const cells = (n) => page.locator("#saes tbody tr").evaluateAll((rows, n) => rows.map((row) => row.cells[n].textContent), n);
const first = data.figures.find(({ id }) => id.startsWith("fidelity")).id;

// Nothing that a text smuggled in: three scripts, no image, no link but the table's and the tool bar's.
assert.equal(await page.locator("script").count(), 3);
assert.equal(await page.locator("img, iframe, body > b").count(), 0);
assert.equal(await page.locator("a[href]").count(), data.saes.length);

// All is drawn, and with text that can be read.
for (const figure of data.figures) {
  const drawn = await traces(figure.id);
  assert.equal(drawn, figure.colour === "sae" ? Math.min(3, figure.series.length) : figure.series.length, figure.id);
}
const small = await page.evaluate(() => [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && parseFloat(getComputedStyle(e).fontSize) < 12).map((e) => `${e.tagName} ${e.textContent}`));
assert.deepEqual(small, []);

// The table is sorted by a number, what is not defined comes last; and filtered.
const heads = await page.locator("#saes thead th").allInnerTexts();
const l0 = heads.findIndex((head) => head.startsWith("L0"));
await page.locator("#saes thead th button").nth(l0).click();
const up = (await cells(l0)).map(Number);
assert.deepEqual(up, [...up].sort((a, b) => a - b));
await page.locator("#saes thead th button").nth(l0).click();
const down = (await cells(l0)).map(Number);
assert.deepEqual(down, [...up].reverse());
const words = data.saes.at(-1).id.slice(-8);
await page.locator("input[type=search]").fill(words);
const shown = await page.locator("#saes tbody tr:visible").count();
assert.equal(shown, (await page.locator("#saes tbody tr").allTextContents()).filter((text) => text.toLowerCase().includes(words.toLowerCase())).length);
await page.locator("input[type=search]").fill("");

// A layer is hidden and shown again.
const all = await traces(first);
const layer = page.locator("#fidelity-controls .chip").first();
await layer.click();
assert.equal(await layer.getAttribute("aria-pressed"), "false");
assert.ok((await traces(first)) < all);
await layer.click();
assert.equal(await traces(first), all);

// SAEs are put side by side, six at most; positions become logarithmic.
for (let i = 3; i < 8; i++) await page.locator(`#sae-${i} input`).check();
assert.equal(await traces("position-fvu"), 6);
assert.equal(await page.locator("#saes input:checked").count(), 6);
await page.locator("#chosen-controls .chip").first().click();
assert.equal(await traces("density"), 5);
await page.getByLabel("logarithmic positions").check();
assert.equal(await page.evaluate(() => document.getElementById("position-fvu").layout.xaxis.type), "log");

// An SAE's own numbers, by its link and by a point.
await page.locator("#sae-4 a").click();
assert.ok((await page.locator("#detail-body").innerText()).includes(data.saes[4].id));
assert.equal(await page.locator("#detail-body tr").filter({ hasText: "undefined" }).count(), 0);
await page.locator(`#${first} .point`).first().hover({ force: true });
const hover = page.locator(`#${first} .hoverlayer`);
await hover.locator("text").first().waitFor();
const label = await hover.textContent();
assert.ok(data.saes.some(({ id }) => label.includes(id)), label);
const { x, y, width, height } = await page.locator(`#${first} .point`).first().boundingBox();
await page.mouse.click(x + width / 2, y + height / 2);
await page.waitForFunction(() => document.getElementById("detail").getBoundingClientRect().top < 400);

// In the dark, and on a narrow page.
if (folder) await page.screenshot({ path: `${folder}/light.png`, fullPage: true });
await page.emulateMedia({ colorScheme: "dark" });
await page.setViewportSize({ width: 800, height: 900 });
await page.waitForTimeout(500);
assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 800, "the page scrolls sideways");
if (folder) await page.screenshot({ path: `${folder}/dark.png`, fullPage: true });
assert.deepEqual(wrong, []);
await browser.close();
console.log("all is well");
