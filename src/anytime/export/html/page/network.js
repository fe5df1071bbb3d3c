// The network: one session of onnxruntime-web for each graph.

const REPEATS = 30, LEAST = 5; // runs that the profile is measured on, at most and at least
const PATIENCE = 1500; // milliseconds after which no further run begins

/** Whether this browser can run the page: null, or a sentence that says what it lacks. */
function lacking() {
  const current = "open the page in a current Firefox, Chrome, Edge or Safari";
  // a function whose body is: i32.const 0, i8x16.splat, drop
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 9, 1, 7, 0, 65, 0, 253, 15, 26, 11];
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(simd)))
    return `This browser has no WebAssembly with SIMD, which the network computes with: ${current}.`;
  if (typeof DecompressionStream !== "function")
    return `This browser cannot unpack the network (it has no DecompressionStream): ${current}.`;
  return null;
}

class Network {
  /** Unpacks engine, graphs and weights; `tell` is called with what is going on. */
  static async open(facts, tell) {
    await tell("Unpacking the network …");
    const names = ["engine", "glue", "graphs", "halves", "singles"];
    const [engine, glue, graphs, halves, singles] = await Promise.all(names.map(part));
    const pool = weightsOf(facts.weights, halves, singles);
    await tell("Unpacking the engine …");
    const [address, mjs] = [engine, glue].map((script) => URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    const ort = await import(address);
    Object.assign(ort.env.wasm, { wasmBinary: (await part("program")).buffer, wasmPaths: { mjs }, numThreads: 1 });
    ort.env.logLevel = "error";
    const sessions = [], externalData = [{ path: "weights", data: pool }];
    let from = 0;
    for (const [number, size] of facts.graphs.entries()) {
      await tell(`Loading step ${number + 1} of ${facts.graphs.length} …`);
      const graph = graphs.slice(from, (from += size));
      sessions.push(await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData }));
    }
    return new Network(facts, ort, sessions);
  }

  constructor(facts, ort, sessions) {
    Object.assign(this, { facts, ort, sessions, drift: new Drift(), profile: null });
  }

  /** Starts a run: a function that computes the next step and gives its logits and milliseconds. */
  start(image) {
    const made = [{ images: new this.ort.Tensor("float32", image, [1, ...this.facts.input]) }];
    return async () => {
      const { graph, inputs } = this.facts.steps[made.length - 1], session = this.sessions[graph];
      const feeds = Object.fromEntries(inputs.map(([name, step, output]) => [name, made[step][output]]));
      const begin = performance.now();
      made.push(await session.run(feeds));
      const milliseconds = performance.now() - begin;
      return { logits: Array.from(made.at(-1).answer.data.slice(0, this.facts.classes.length)), milliseconds };
    };
  }

  /** Runs all steps; the drift follows them. */
  async run(image) {
    const ratio = this.drift.ratio, next = this.start(image), logits = [], milliseconds = [];
    for (let t = 0; t < this.facts.steps.length; t++) {
      const step = await next();
      logits.push(step.logits);
      milliseconds.push(step.milliseconds);
      if (this.profile) this.drift.notice(this.profile[t].p50, step.milliseconds);
    }
    return { logits, milliseconds, ratio };
  }

  /** Runs steps as long as the next one fits the deadline, and the rule does not stop; with `late` milliseconds after it. */
  async runBy(image, deadline, rule) {
    const begin = performance.now(), next = this.start(image), logits = [], milliseconds = [], ratio = this.drift.ratio;
    while (logits.length < this.facts.steps.length) {
      const t = logits.length;
      if (combined(logits, rule, this.facts.steps.length).stopped) break;
      if (!fits(this.profile, this.drift, t, performance.now() - begin, deadline)) break;
      const step = await next();
      logits.push(step.logits);
      milliseconds.push(step.milliseconds);
      this.drift.notice(this.profile[t].p50, step.milliseconds);
    }
    const elapsed = performance.now() - begin;
    return { logits, milliseconds, ratio, elapsed, late: Math.max(elapsed - deadline, 0) };
  }

  /** Measures each step: median and 90 % quantile of its milliseconds, and the median until its answer. */
  async measure(image, tell) {
    const runs = [], begin = performance.now();
    await tell("Measuring how fast the steps are here …");
    for (let i = -3; i < LEAST || (i < REPEATS && performance.now() - begin < PATIENCE); i++) {
      const { milliseconds } = await this.run(image);
      if (i >= 0) runs.push(milliseconds);
    }
    this.profile = this.facts.steps.map((_, t) => {
      const own = runs.map((run) => run[t]), until = runs.map((run) => run.slice(0, t + 1).reduce((a, b) => a + b));
      return { p50: quantile(own, 0.5), p90: quantile(own, 0.9), reached: quantile(until, 0.5) };
    });
    this.drift = new Drift();
  }
}
