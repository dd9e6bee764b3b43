// What the page does in a browser: run by hand, since no build here has one.
//   npm install playwright-core
//   cargo run --release -p dashboard --example page -- page.html
//   node crates/dashboard/tests/browser.mjs /path/to/chromium /path/to/page.html [screenshot folder]
// Any page with two sentences, the first read from left to right, will do.
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [chrome, file, folder] = process.argv.slice(2);
const args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"];
const browser = await chromium.launch({ executablePath: chrome, args });
const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
const wrong = [];
page.on("pageerror", (e) => wrong.push(e.message));
page.on("console", (m) => wrong.push(m.text()));
page.on("dialog", (d) => { wrong.push("a dialog"); d.dismiss(); });
page.on("request", (r) => { if (!r.url().startsWith("file:")) wrong.push("a request: " + r.url()); });
await page.goto(pathToFileURL(file).href);

const analysis = await page.evaluate(() => JSON.parse(document.getElementById("analysis").textContent));
const token = (p, t) => page.locator(`#prompts section:nth-of-type(${p + 1}) .t[data-t="${t}"]`);
const text = (id) => page.locator(id).innerText();
const focused = () => page.evaluate(() => {
  const e = document.activeElement;
  return [[...document.querySelectorAll(".sentence")].indexOf(e.closest(".sentence")), Number(e.dataset.t)];
});

/** Every token of every sentence has the depth that the latent's activation asks for. */
async function colouredBy(sae, latent) {
  const trace = analysis.saes[sae].latents.find((l) => l.latent === Number(latent));
  for (const [p, { tokens, counted }] of analysis.prompts.entries()) {
    const on = trace.active.find((a) => a.prompt === p);
    for (const t of tokens.keys()) {
      const i = on && counted[t] ? on.tokens.indexOf(t) : -1;
      const want = i < 0 ? 0 : 0.12 + (0.88 * on.activations[i]) / trace.max_activation;
      const got = Number(await token(p, t).evaluate((e) => e.style.getPropertyValue("--a")));
      assert.ok(Math.abs(got - want) < 1e-3, `sentence ${p} token ${t}: ${got} is not ${want}`);
    }
  }
}

// All tokens, and nothing that a text smuggled in.
assert.equal(await page.locator(".t").count(), analysis.prompts.reduce((n, p) => n + p.tokens.length, 0));
assert.equal(await page.locator("script").count(), 2);

assert.equal(await page.locator(".what dt").count(), Object.keys(analysis.definitions).length);
assert.ok(!(await text("#app")).includes("[object"));

// A token is shown while the pointer is on it; a click keeps it.
await token(0, 1).hover();
assert.match(await text("#token"), /token 1 of sentence 1/);
await token(0, 4).click();
assert.equal(await token(0, 4).getAttribute("aria-pressed"), "true");
await token(0, 3).hover();
assert.match(await text("#token"), /token 3 of/);
await page.locator("h1").hover();
assert.match(await text("#token"), /token 4 of/);

// A latent, chosen from the panel, colours all sentences; the choice outlives a reload, and can be undone.
const pick = page.locator("#token .pick").nth(1);
const latent = await pick.getAttribute("data-latent");
await pick.click();
await colouredBy(0, latent);
assert.match(await text("#latent"), new RegExp(`^Latent ${latent}\n`));
assert.equal(await page.evaluate(() => document.activeElement.dataset.latent), latent, "the focus stays");
await page.reload();
await colouredBy(0, latent);
await page.locator("#latent .hit").first().click();
assert.notEqual((await focused())[0], -1, "a place in the list leads to its token");
await page.locator("#latent .link").click();
assert.match(await text("#latent"), /Pick a latent/);

// The keyboard alone.
const last = analysis.prompts[0].tokens.length - 1;
await token(0, 0).focus();
for (const [key, ...want] of [["ArrowRight", 0, 1], ["End", 0, last], ["ArrowRight", 1, 0], ["ArrowLeft", 0, last]]) {
  await page.keyboard.press(key);
  assert.deepEqual(await focused(), want, key);
}
await page.keyboard.press("ArrowDown");
assert.equal((await focused())[0], 1);
await page.keyboard.press("ArrowUp");
assert.equal((await focused())[0], 0);
await page.keyboard.press("Home");
await page.keyboard.press("ArrowRight");
await page.keyboard.press("1");
await colouredBy(0, analysis.saes[0].prompts[0].tokens[1].distinctive[0].latent);
await page.keyboard.press("Enter");
assert.equal(await token(0, 1).getAttribute("aria-pressed"), "true");
await page.keyboard.press("Escape");
assert.equal(await token(0, 1).getAttribute("aria-pressed"), "false");
await page.keyboard.press("Escape");
assert.match(await text("#latent"), /Pick a latent/);
const stops = await page.$$eval(".sentence", (all) => all.map((s) => s.querySelectorAll('.t[tabindex="0"]').length));
assert.ok(stops.every((n) => n === 1), "each sentence is one tab stop");

// The table, and the strip.
const row = page.locator(".lats tbody tr").nth(1);
await row.click();
assert.equal(await row.locator("button").getAttribute("aria-pressed"), "true");
await row.click();
assert.equal(await row.locator("button").getAttribute("aria-pressed"), "false");
const strip = await page.locator(".strips svg").first().boundingBox();
await page.mouse.move(strip.x + strip.width - 2, strip.y + 8);
assert.match(await text("#token"), new RegExp(`token ${last} of sentence 1`));

// The other ranking.
const first = () => page.locator(".lats .lat").first().innerText();
assert.equal(await first(), String(analysis.saes[0].prompts[0].distinctive[0].latent));
await page.locator("input[name=rank]").nth(1).check();
assert.equal(await first(), String(analysis.saes[0].prompts[0].strongest[0].latent));
await page.locator("input[name=rank]").nth(0).check();

// Another SAE.
if (analysis.saes.length > 1) {
  await page.locator("input[name=sae]").nth(1).check();
  assert.equal(await text("h1"), analysis.saes[1].id);
  await page.locator(".lats .lat").first().click();
  await colouredBy(1, analysis.saes[1].prompts.find((p) => p.distinctive.length).distinctive[0].latent);
}

// No width makes the page scroll sideways.
for (const [width, colorScheme] of [[320, "light"], [400, "dark"], [700, "light"], [1280, "dark"], [1280, "light"]]) {
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme });
  const beyond = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(beyond <= 0, `${beyond} px too wide at ${width}`);
  if (folder) await page.screenshot({ path: `${folder}/${width}-${colorScheme}.png` });
}
assert.deepEqual(wrong, []);
await browser.close();
console.log("the page does what it should");
