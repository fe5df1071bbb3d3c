// The page itself: what is chosen, what is shown.

const facts = JSON.parse(document.getElementById("facts").textContent);
const COLOURS = ["c0", "c1", "c2", "c3", "c4"];
const SHOWN = 10; // classes with a bar
const get = (id) => document.getElementById(id);
const NAMES = facts.classes.map((name, k) => name.trim() || `class ${k}`);
const PRIOR = facts.classes.map(() => 1 / facts.classes.length);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

class Page {
  constructor(network, examples) {
    Object.assign(this, { network, examples, shown: null, camera: null, playing: 0, moving: false });
    this.bars = new Bars(get("bars"));
    this.course = new Chart(get("course"), 210);
    this.accuracy = new Chart(get("accuracy"), 130);
    this.deadlines = shortestDeadlines(network.profile);
  }

  get deadline() {
    return Number(get("deadline").value);
  }
  get rule() {
    return facts.rules[Number(get("rule").value)];
  }

  /** Shows a picture of the network's size and runs all steps on it. */
  async choose(picture, label = -1, what = "Your picture") {
    this.stopPlaying();
    drawn(get("picture"), picture);
    get("picture").setAttribute("aria-label", what);
    get("caption").textContent = what;
    const run = await this.network.run(toNetwork(picture));
    this.shown = { ...run, label };
    this.combine();
    this.reveal();
    return this.shown;
  }

  /** Makes the answers of the run by the chosen rule, and draws all that does not depend on the deadline. */
  combine() {
    Object.assign(this.shown, combined(this.shown.logits, this.rule, facts.steps.length));
    const { probabilities, label, milliseconds } = this.shown, most = PRIOR.map((_, k) => Math.max(...probabilities.map((p) => p[k])));
    const ranked = PRIOR.map((_, k) => k).sort((a, b) => most[b] - most[a]), colours = new Map(ranked.map((k, i) => [k, COLOURS[i] ?? "other"]));
    const kept = ranked.filter((k, i) => i < SHOWN || k === label);
    if (facts.classes.length <= SHOWN) kept.sort((a, b) => a - b);
    this.shown.colours = colours;
    this.bars.choose(kept.map((index) => ({ index, name: NAMES[index], colour: colours.get(index), right: index === label })));
    this.shown.ready = milliseconds.map((_, t) => milliseconds.slice(0, t + 1).reduce((a, b) => a + b));
    this.draw();
  }

  /** Draws the charts; the deadline reaches a little beyond the last answer. */
  draw() {
    const { probabilities, ready, colours } = this.shown, slider = get("deadline");
    const longest = 1.08 * Math.max(this.deadlines.at(-1), ready.at(-1)), atEnd = slider.value === slider.max;
    slider.max = longest.toFixed(2);
    slider.step = (longest / 400).toPrecision(2);
    if (atEnd) slider.value = slider.max;
    this.longest = longest;
    this.course.begin(longest, 0, 1);
    for (const k of [...colours.keys()].reverse()) {
      const points = [[0, PRIOR[k]], ...probabilities.map((p, t) => [ready[t], p[k]])], colour = colours.get(k);
      if (colour === "other" && facts.classes.length > SHOWN) continue;
      this.course.stairs(points, longest, `curve ${colour}`);
      if (colour !== "other")
        probabilities.forEach((p, t) => this.course.dot(ready[t], p[k], colour, `${NAMES[k]}: ${percent(p[k])} after step ${t + 1}, ${ms(ready[t])}`));
    }
    const last = probabilities.at(-1), top = last.indexOf(Math.max(...last)), taken = [];
    for (const [k, colour] of colours) {
      const y = this.course.y(last[k]) - 6;
      if (colour === "other" || taken.some((other) => Math.abs(other - y) < 14)) continue;
      taken.push(y);
      this.course.name(y, NAMES[k], colour);
    }
    this.course.describe(`Probabilities over time. After the last step, ${ms(ready.at(-1))}: ${NAMES[top]}, ${percent(last[top])}.`);
    if (facts.accuracy) {
      const low = Math.max(0, Math.floor(10 * Math.min(...facts.accuracy) - 0.5) / 10);
      Object.assign(this, { low });
      this.accuracy.begin(longest, low, 1);
      this.accuracy.stairs(this.deadlines.map((d, t) => [d, facts.accuracy[t]]), longest, "curve c0");
      this.deadlines.forEach((d, t) => this.accuracy.dot(d, facts.accuracy[t], "c0", `${percent(facts.accuracy[t])} from ${ms(d)} on`));
      this.accuracy.describe(`Accuracy over the deadline: ${facts.accuracy.map((a, t) => `${percent(a)} from ${ms(this.deadlines[t])}`).join(", ")}.`);
    }
    this.table();
  }

  /** What the deadline gives of the run that is shown. */
  answer(deadline = this.deadline) {
    const { milliseconds, ratio, probabilities, stopped } = this.shown;
    const { step, late } = keeping(this.network.profile, ratio, milliseconds.slice(0, stopped || milliseconds.length), deadline);
    return { step, late, probabilities: step ? probabilities[step - 1] : PRIOR };
  }

  /** Shows the answer at the deadline. */
  show() {
    const { step, late, probabilities } = this.answer();
    this.present(step, probabilities, late);
    this.mark();
  }

  /** Marks the deadline in the charts. */
  mark() {
    this.course.at(this.deadline, 0, 1);
    if (facts.accuracy) this.accuracy.at(this.deadline, this.low, 1);
  }

  /** Bars and words for an answer. */
  present(step, probabilities, late, live = null) {
    const { label, ready, stopped } = this.shown, total = facts.steps.length, deadline = this.deadline;
    const top = probabilities.indexOf(Math.max(...probabilities)), sure = percent(probabilities[top]);
    this.bars.show(probabilities);
    get("says").textContent = step ? NAMES[top] : "no answer yet";
    get("sure").textContent = step ? sure : "all classes are equally likely";
    const verdict = step && label >= 0 ? (top === label ? "right" : "wrong") : "";
    get("verdict").textContent = verdict && (top === label ? "✓ right" : `✗ it is: ${NAMES[label]}`);
    get("verdict").className = verdict;
    const when = live ? `${ms(live.elapsed)}` : step ? ms(ready[step - 1]) : "";
    const ended = stopped && step === stopped ? "; the rule stopped there" : "";
    get("when").textContent = step ? `step ${step} of ${total}, ready after ${when}${ended}` : "the first step does not fit";
    if (late) get("when").textContent += `; a step was late by ${ms(late)}`;
    [...get("steps").children].forEach((dot, t) => dot.classList.toggle("done", t < step));
    get("by").textContent = ms(deadline);
    get("deadline").setAttribute("aria-valuetext", `${ms(deadline)}: ${step ? `${NAMES[top]}, ${sure}, step ${step} of ${total}` : "no answer yet"}`);
    get("drift").textContent = this.network.drift.slowdown.toFixed(2);
    if (facts.accuracy) {
      const reached = this.deadlines.filter((d) => d <= deadline).length;
      const share = reached ? `${(100 * facts.accuracy[reached - 1]).toFixed(2)} %` : "none";
      const without = this.rule.stop.kind === "never" ? "" : ", without the rule";
      get("share").textContent = share;
      get("of").textContent = `(${reached ? `answer ${reached}` : "before the first answer"}${without})`;
    }
  }

  /** Says the answer to a screen reader, once it stays for a moment. */
  announce() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.speak(), 400);
  }
  speak() {
    get("spoken").textContent = `By ${get("by").textContent}: ${get("says").textContent}, ${get("sure").textContent}. ${get("verdict").textContent} ${get("when").textContent}.`;
  }

  /** Shows the answers one after the other, up to that of the deadline. */
  reveal() {
    const { step } = this.answer(), mine = ++this.playing;
    const next = (t) => {
      if (mine !== this.playing) return;
      if (t >= step || calm.matches) {
        this.show();
        return this.announce();
      }
      this.present(t, this.shown.probabilities[t - 1], 0);
      setTimeout(() => next(t + 1), 1000 / step);
    };
    this.mark();
    next(1);
  }

  /** Lets the deadline grow from 0 to its end, in four seconds; a second call stops it. */
  play() {
    if (this.moving) return this.stopPlaying();
    const mine = ++this.playing, begin = performance.now(), slider = get("deadline");
    this.moving = true;
    get("play").textContent = "Stop";
    const frame = (now) => {
      if (mine !== this.playing) return;
      const share = Math.min(Math.max(now - begin, 0) / 4000, 1);
      slider.value = share * this.longest;
      this.show();
      if (share < 1) requestAnimationFrame(frame);
      else {
        this.stopPlaying();
        this.announce();
      }
    };
    requestAnimationFrame(frame);
  }
  stopPlaying() {
    this.playing++;
    this.moving = false;
    get("play").textContent = "Play in slow motion";
  }

  /** The steps as a table: the charts in numbers. */
  table() {
    const { probabilities, ready } = this.shown, profile = this.network.profile;
    const rows = probabilities.map((p, t) => {
      const top = p.indexOf(Math.max(...p));
      const cells = [t + 1, NAMES[top], percent(p[top]), ms(ready[t]), ms(this.deadlines[t]), profile[t].p50.toFixed(2), profile[t].p90.toFixed(2)];
      if (facts.accuracy) cells.push(`${(100 * facts.accuracy[t]).toFixed(2)} %`);
      return element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell))));
    });
    get("rows").replaceChildren(...rows);
  }

  /** Opens a file that was chosen or dropped. */
  async open(file) {
    this.stopCamera();
    const name = file.name.length > 60 ? `${file.name.slice(0, 60)}…` : file.name;
    let picture;
    try {
      picture = await pictureIn(file, facts.input[0]);
    } catch {
      return problem(`“${name}” is no picture that this browser can read: choose a PNG, JPEG or WebP file.`);
    }
    problem("");
    document.querySelectorAll("#examples input").forEach((input) => (input.checked = false));
    return this.choose(middleView(picture, facts.input, facts.ratio, facts.stretched), -1, name);
  }

  /** Answers the camera's frames, each by the deadline, until it is stopped. */
  async watch() {
    if (this.camera) {
      this.stopCamera();
      return this.frame && this.choose(this.frame, -1, "The camera's last picture");
    }
    if (!navigator.mediaDevices?.getUserMedia)
      return problem("This browser gives no camera to a page from a file: open it in another browser, or choose a photo.");
    get("camera").disabled = true; // until the user has answered
    try {
      this.camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    } catch (error) {
      const none = error.name === "NotFoundError" || error.name === "OverconstrainedError";
      if (error.name === "NotReadableError") return problem("The camera is in use by another program: close that one, or choose a photo.");
      return problem(none ? "There is no camera here: choose a photo."
        : "The camera was refused: allow it for this page in the browser's address bar, or choose a photo.");
    } finally {
      get("camera").disabled = false;
    }
    problem("");
    this.stopPlaying();
    document.querySelectorAll("#examples input").forEach((input) => (input.checked = false));
    get("camera").textContent = "Stop the camera";
    const video = get("video"), stream = this.camera;
    this.frame = null;
    video.srcObject = stream;
    try {
      await video.play();
    } catch {
      return; // stopped meanwhile
    }
    let frames = 0, missed = 0, said = "", at = 0; // what a screen reader heard last, and when
    while (this.camera === stream) {
      await new Promise((done) => requestAnimationFrame(done));
      if (!video.videoWidth || this.camera !== stream) continue;
      const frame = captured(video, video.videoWidth, video.videoHeight, facts.input[0]);
      const picture = (this.frame = middleView(frame, facts.input, facts.ratio, facts.stretched));
      drawn(get("picture"), picture);
      const run = await this.network.runBy(toNetwork(picture), this.deadline, this.rule);
      if (this.camera !== stream) return;
      frames++;
      missed += run.late > 0 ? 1 : 0;
      get("caption").textContent = `Camera: ${frames} frames, ${missed} answers late`;
      if (!run.logits.length) {
        if (this.shown) this.present(0, PRIOR, 0, run);
        continue;
      }
      Object.assign(this.shown, run, { label: -1 });
      this.combine();
      this.present(run.logits.length, this.shown.probabilities.at(-1), run.late, run);
      const now = `${get("says").textContent} ${run.logits.length}`;
      if (now !== said && performance.now() - at > 1000) {
        [said, at] = [now, performance.now()];
        this.speak();
      }
    }
  }
  stopCamera() {
    this.camera?.getTracks().forEach((track) => track.stop());
    this.camera = null;
    get("camera").textContent = "Use the camera";
  }
}

/** Shows a sentence about what went wrong; an empty one removes it. */
function problem(text) {
  get("problem").textContent = text;
  get("problem").hidden = !text;
}

/** The test images that the page holds, as `[{ picture, label }]`. */
function examplesOf(bytes) {
  const [channels, height, width] = facts.input, size = channels * height * width;
  return facts.labels.map((label, i) => {
    const planes = bytes.subarray(i * size, (i + 1) * size), data = new Uint8Array(size);
    for (let p = 0; p < height * width; p++) for (let c = 0; c < channels; c++) data[p * channels + c] = planes[c * height * width + p];
    return { label, picture: { data, width, height, channels } };
  });
}

/** Makes the controls and connects them. */
function connect(page) {
  get("examples").append(...page.examples.map(({ label, picture }, i) => {
    const what = `Test image: ${NAMES[label]}`, input = element("input", { type: "radio", name: "example", "aria-label": what });
    input.checked = i === 0;
    input.addEventListener("change", () => {
      page.stopCamera();
      problem("");
      page.choose(picture, label, what);
    });
    return element("label", { title: NAMES[label] }, input, drawn(element("canvas", { "aria-hidden": "true" }), picture));
  }));
  get("steps").append(...facts.steps.map((_, t) => element("span", {}, String(t + 1))));
  get("rule").append(...facts.rules.map(({ name }, i) => element("option", { value: i }, name || "off")));
  get("rule").addEventListener("change", () => {
    page.combine();
    page.show();
    page.announce();
  });
  get("deadline").addEventListener("input", () => {
    page.stopPlaying();
    page.show();
    page.announce();
  });
  get("play").addEventListener("click", () => page.play());
  get("camera").addEventListener("click", () => page.watch());
  get("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) page.open(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) page.open(event.dataTransfer.files[0]);
    });
  new ResizeObserver(() => {
    page.draw();
    page.mark();
  }).observe(get("course"));
}

/** Follows the page around this one, which asks for its colours as `#dark` or `#light`. */
function follow() {
  const asked = location.hash.slice(1);
  document.documentElement.style.colorScheme = ["dark", "light"].includes(asked) ? asked : "";
}
addEventListener("hashchange", follow);
follow();

async function begin() {
  const missing = lacking();
  if (missing) return problem(missing);
  const tell = (text) => {
    get("progress").textContent = text;
    return new Promise((done) => setTimeout(done));
  };
  const network = await Network.open(facts, tell);
  const examples = examplesOf(facts.labels.length ? await part("examples-data") : new Uint8Array(0));
  const [channels, height, width] = facts.input;
  const blank = { data: new Uint8Array(channels * height * width).fill(128), width, height, channels };
  const first = examples[0] ?? { picture: blank, label: -1 };
  await network.measure(toNetwork(first.picture), tell);
  const page = new Page(network, examples);
  get("loading").hidden = true;
  get("live").hidden = false;
  await page.choose(first.picture, first.label, examples.length ? `Test image: ${NAMES[first.label]}` : "A grey picture: choose a photo");
  connect(page);
  return page;
}

/** The page once it answers, for its test and for the console. */
window.live = begin().catch((error) => {
  get("progress").textContent = "";
  problem(`The network cannot be loaded: ${error.message ?? error}`);
});
