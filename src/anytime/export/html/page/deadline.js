// Deadlines as anytime.runtime keeps them: a profile of each step, and how much slower than profiled the browser is now.

/** r <- r (1 + clip(x / r - 1, -0.2, 0.2) / 10), x a step's milliseconds over its median; as anytime.runtime.drift. */
class Drift {
  constructor(ratio = 1) {
    this.ratio = ratio;
  }
  get slowdown() {
    return Math.max(1, this.ratio - 0.1);
  }
  notice(median, milliseconds) {
    if (median > 0) this.follow(milliseconds / median);
  }
  forget() {
    this.follow(1);
  }
  follow(ratio) {
    const change = Math.max(-0.2, Math.min(0.2, ratio / this.ratio - 1));
    this.ratio = Math.max(0.5, this.ratio * (1 + 0.1 * change));
  }
}

/** The smallest measured value that is not below the quantile. */
function quantile(milliseconds, q) {
  const ranked = Float64Array.from(milliseconds).sort();
  return ranked[Math.max(Math.ceil(q * ranked.length) - 1, 0)];
}

/** Whether step `index` + 1 may start `now`, to be done by the deadline; as anytime.runtime.plan. */
function fits(profile, drift, index, now, deadline) {
  const milliseconds = drift.slowdown * profile[index].p90, left = deadline - now;
  if (milliseconds > left && left >= profile[index].p90) drift.forget();
  return milliseconds <= left;
}

/**
 * What a deadline gives of a run whose steps took `milliseconds`: the step whose answer is there, 0 for none, and by how much
 * a step that was started came too late.
 */
function keeping(profile, ratio, milliseconds, deadline) {
  const drift = new Drift(ratio);
  let now = 0, step = 0;
  while (step < milliseconds.length && fits(profile, drift, step, now, deadline)) {
    now += milliseconds[step];
    drift.notice(profile[step].p50, milliseconds[step]);
    if (now > deadline) return { step, late: now - deadline };
    step++;
  }
  return { step, late: 0 };
}

/** The shortest deadline that gives each answer, if steps take their median time; as `Profile.shortest_deadlines`. */
function shortestDeadlines(profile) {
  let longest = 0;
  return profile.map((step, t) => (longest = Math.max(longest, (t ? profile[t - 1].reached : 0) + step.p90)));
}
