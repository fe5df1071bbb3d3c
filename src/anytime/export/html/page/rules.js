// Combiners and stopping rules for one image, as anytime.combine and anytime.stopping.rules define them.

function softmax(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, (z) => Math.exp(z - most));
  const sum = powers.reduce((total, p) => total + p, 0);
  return powers.map((p) => p / sum);
}

const number = (value) => (value === "inf" ? Infinity : value);
const perStep = (value, step) => number(Array.isArray(value) ? value[step - 1] : value);
const finite = (logits) => Number.isFinite(Math.max(...logits));

/** Makes the function (logits, step) -> probabilities of one run. */
const COMBINERS = {
  last: () => softmax,
  caching: () => {
    let kept = null;
    return (logits) => {
      const p = softmax(logits);
      if (!kept || Math.max(...p) > Math.max(...kept)) kept = p;
      return kept;
    };
  },
  product: ({ weights }, steps) => {
    let total = null;
    return (logits, step) => {
      const weight = weights ? weights[step - 1] : step / steps;
      const expert = Array.from(logits, (z) => (finite(logits) ? weight * Math.log(Math.max(z, 0)) : 0));
      total = total ? total.map((sum, k) => sum + expert[k]) : expert;
      return Math.max(...total) === -Infinity ? softmax(logits) : softmax(total);
    };
  },
  mixture: ({ weights }) => {
    let sum = 0, mean = null;
    return (logits, step) => {
      const weight = weights[step - 1], p = softmax(logits);
      sum += weight;
      mean = mean ? mean.map((m, k) => m + (p[k] - m) * (weight / sum)) : p;
      return mean;
    };
  },
  temperature: ({ temperatures, combiner }, steps) => {
    const inner = COMBINERS[combiner.kind](combiner, steps);
    return (logits, step) => inner(Array.from(logits, (z) => z / temperatures[step - 1]), step);
  },
  geometric: ({ weights, biases }) => {
    const experts = [];
    return (logits, step) => {
      experts.push(softmax(logits).map((p) => Math.max(Math.log(p), -100)));
      const total = biases[step - 1].map((b, k) =>
        weights[step - 1].reduce((sum, weight, i) => sum + weight * experts[i][k], Math.log(b)));
      return softmax(total);
    };
  },
};

/** Counts for how many steps in a row the same class was on top, while `holds`. */
function row(holds) {
  let label = -1, count = 0;
  return (p) => {
    const most = Math.max(...p), top = p.indexOf(most);
    count = holds(most) ? (top === label ? count : 0) + 1 : 0;
    label = top;
    return count;
  };
}

/** Makes the function (probabilities, step) -> whether to stop of one run. */
const RULES = {
  never: () => () => false,
  confidence: ({ threshold }) => (p, step) => Math.max(...p) >= perStep(threshold, step),
  margin: ({ threshold }) => (p, step) => {
    const [first, second = 0] = [...p].sort((a, b) => b - a);
    return first - second >= perStep(threshold, step);
  },
  entropy: ({ threshold }) => (p, step) =>
    p.reduce((sum, x) => sum - (x > 0 ? x * Math.log(x) : 0), 0) < perStep(threshold, step),
  patience: ({ times }) => {
    const count = row(() => true);
    return (p) => count(p) >= times;
  },
  selection_latency: ({ threshold, hold }) => {
    const count = row((most) => most > threshold);
    return (p) => count(p) >= hold;
  },
  confidence_bands: ({ bands }) => (p, step) => {
    const most = Math.max(...p);
    return bands[step - 1].some(([low, high]) => most >= number(low) && (number(high) === Infinity || most < number(high)));
  },
  any: ({ rules }) => {
    const parts = rules.map((rule) => RULES[rule.kind](rule));
    return (p, step) => parts.map((stops) => stops(p, step)).some(Boolean);
  },
  all: ({ rules }) => {
    const parts = rules.map((rule) => RULES[rule.kind](rule));
    return (p, step) => parts.map((stops) => stops(p, step)).every(Boolean);
  },
};

/** Probabilities after each step so far, of `total`, and the step after which the rule stops; 0 if it has not. */
function combined(logits, { combine, stop }, total) {
  const update = COMBINERS[combine.kind](combine, total), stops = RULES[stop.kind](stop);
  let stopped = 0;
  const probabilities = logits.map((z, t) => {
    const p = update(z, t + 1);
    if (!stopped && t + 1 < total && stops(p, t + 1)) stopped = t + 1;
    return p;
  });
  return { probabilities, stopped };
}
