/*
 * GridLedger's dashboard: a strategy, and the cards of its first view. No build step, no
 * outside request; views.js has the other cards, shared.js what they all need.
 *
 * What core has (history graphs, tiles) is used as it is; drawn here is only what core lacks: the
 * flow with the neighbours, sales, and readings with their way into the ledger. Texts come from
 * the integration's translations. Colour never carries meaning alone, every drawing has a text
 * and a table, and nothing moves where the reader asked for less motion.
 */

// The version in our own address: what we import is never older or newer than we are.
const VERSION = new URL(import.meta.url).search;
const shared = import(`./shared.js${VERSION}`);

class GridLedgerDashboardStrategy extends HTMLElement {
  static async generate(config, hass) {
    const { loadTexts, loadHomes } = await shared;
    const [texts, homes] = await Promise.all([loadTexts(hass), loadHomes(hass, true)]);
    const t = (key) => texts[key] ?? key;
    if (!homes.length) {
      return {
        views: [
          { title: "GridLedger", cards: [{ type: "markdown", content: t("not_set_up") }] },
        ],
      };
    }
    const wanted = config.entry_id
      ? homes.filter((home) => home.entry_id === config.entry_id)
      : homes;
    return {
      title: "GridLedger",
      views: wanted.flatMap((home, index) => viewsOf(home, t, wanted.length > 1 ? index + 1 : 0)),
    };
  }
}

// Lovelace waits some seconds for it and not longer: it is there before anything else is loaded.
const STRATEGY = "ll-strategy-dashboard-gridledger";
if (!customElements.get(STRATEGY)) customElements.define(STRATEGY, GridLedgerDashboardStrategy);

const {
  DOMAIN,
  escapeHtml,
  formatNumber,
  formatInstant,
  formatPower,
  formatExact,
  formatMoney,
  formatTime,
  watts,
  number,
  STYLE,
  heading,
  nameOf,
  table,
  GridLedgerCard,
} = await shared;

const GRAPH_HOURS = 3;

/* The flow ------------------------------------------------------------------------------------ */

// Where things stand in the drawing, which is 400 by 340.
const NODES = {
  sun: {
    x: 200,
    y: 62,
    above: true,
    icon: "mdi:white-balance-sunny",
    color: "--energy-solar-color, #ff9800",
  },
  grid: {
    x: 56,
    y: 170,
    icon: "mdi:transmission-tower",
    color: "--energy-grid-consumption-color, #488fc2",
  },
  house: { x: 344, y: 170, icon: "mdi:home", color: "--primary-color, #009ac7" },
  battery: {
    x: 200,
    y: 278,
    icon: "mdi:battery-high",
    color: "--energy-battery-out-color, #4db6ac",
  },
  market: {
    x: 56,
    y: 62,
    above: true,
    icon: "mdi:home-group",
    color: "--energy-grid-return-color, #8353d1",
  },
};
const HUB = { x: 200, y: 170 };
const RADIUS = 36;
const RING = 2 * Math.PI * RADIUS;

const FLOW_STYLE = `
  .flow { position: relative; width: 100%; max-width: 560px; margin: 0 auto;
          aspect-ratio: 400 / 340; }
  svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
  .wire { fill: none; stroke: var(--divider-color); stroke-width: 2; }
  .wire.live { stroke: var(--node); stroke-opacity: 0.55; stroke-width: 3; }
  .dot { fill: var(--node); }
  .plate { fill: var(--ha-card-background, var(--card-background-color, #fff)); }
  .ring { fill: none; stroke-width: 4; stroke: var(--divider-color); }
  .arc { fill: none; stroke-width: 4; stroke: var(--node); transform: rotate(-90deg);
         transform-box: fill-box; transform-origin: center; transition: stroke-dasharray 0.6s; }
  .hub { fill: var(--secondary-text-color); fill-opacity: 0.35; }
  .node { position: absolute; transform: translate(-50%, -50%); width: 17%; min-width: 56px;
          aspect-ratio: 1; border: 0; background: none; padding: 0; cursor: pointer;
          color: var(--primary-text-color); font: inherit; border-radius: 50%;
          display: flex; flex-direction: column; align-items: center; justify-content: center;
          line-height: 1.2; -webkit-tap-highlight-color: transparent; }
  .node:focus-visible { outline: 2px solid var(--primary-color); outline-offset: 2px; }
  .node:hover ha-icon { transform: scale(1.12); }
  .node ha-icon { color: var(--node); --mdc-icon-size: clamp(18px, 5.4vw, 24px);
                  transition: transform 0.15s; }
  .value { font-weight: 500; font-size: clamp(11px, 3.2vw, 14px); white-space: nowrap;
           font-variant-numeric: tabular-nums; }
  .under { position: absolute; transform: translate(-50%, 0); text-align: center;
           font-size: 12px; line-height: 1.25; color: var(--secondary-text-color);
           white-space: nowrap; pointer-events: none; }
  .under.above { transform: translate(-50%, -100%); }
  .chips { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 8px;
           margin-top: 12px; }
  .chip { display: grid; grid-template-columns: auto 1fr; align-items: center; gap: 0 10px;
          min-height: 48px; padding: 6px 10px; border-radius: 12px; text-align: start;
          border: 1px solid var(--divider-color); background: none; min-width: 0;
          color: var(--secondary-text-color); font: inherit; font-size: 12px; cursor: pointer;
          line-height: 1.3; font-variant-numeric: tabular-nums; }
  .chip ha-icon { grid-row: span 2; }
  .chip:focus-visible { outline: 2px solid var(--primary-color); outline-offset: 2px; }
  .chip ha-icon { --mdc-icon-size: 18px; color: var(--secondary-text-color); }
  .chip b { font-weight: 500; font-size: 14px; white-space: nowrap; color: var(--primary-text-color); }
  @media (prefers-reduced-motion: reduce) {
    .arc, .node ha-icon { transition: none; }
  }
`;

const STILL = matchMedia("(prefers-reduced-motion: reduce)");

class GridLedgerFlowCard extends GridLedgerCard {
  connectedCallback() {
    this._motionChanged ??= () => {
      this._still = STILL.matches;
      if (this._home) this._soon();
    };
    STILL.addEventListener("change", this._motionChanged);
    this._motionChanged();
  }

  disconnectedCallback() {
    STILL.removeEventListener("change", this._motionChanged);
  }

  build() {
    this._still = STILL.matches;
    const names = Object.keys(NODES).filter((name) => this._has(name));
    const path = (name) => {
      const { x, y } = NODES[name];
      if (name === "market") return `M ${HUB.x} ${HUB.y} Q 104 156 ${x} ${y}`;
      return `M ${x} ${y} L ${HUB.x} ${HUB.y}`;
    };
    const wires = names
      .map(
        (name) => `<g style="--node: var(${NODES[name].color})">
          <path id="wire-${name}" class="wire" d="${path(name)}"></path>
          <circle class="dot" id="dot-${name}" r="5" cx="-99" cy="-99"></circle></g>`,
      )
      .join("");
    const rings = names
      .map((name) => {
        const { x, y, color } = NODES[name];
        return `<g style="--node: var(${color})"><circle class="plate" cx="${x}" cy="${y}"
          r="${RADIUS}"></circle><circle class="ring" cx="${x}" cy="${y}" r="${RADIUS}"></circle>
          <g id="arcs-${name}"></g></g>`;
      })
      .join("");
    const buttons = names
      .map((name) => {
        const { x, y, above, icon, color } = NODES[name];
        const label = above ? y - RADIUS - 6 : y + RADIUS + 6;
        return `<button class="node" id="node-${name}" type="button"
          style="left:${x / 4}%;top:${y / 3.4}%;--node:var(${color})">
          <ha-icon icon="${icon}" aria-hidden="true"></ha-icon><span class="value"></span></button>
          <div class="under${above ? " above" : ""}" id="under-${name}" aria-hidden="true"
          style="left:${x / 4}%;top:${label / 3.4}%"></div>`;
      })
      .join("");
    this.shadowRoot.innerHTML = `<style>${STYLE}${FLOW_STYLE}</style><ha-card><div class="card">
      <div class="flow"><svg viewBox="0 0 400 340" role="img" aria-label="">${wires}
      <circle class="hub" cx="${HUB.x}" cy="${HUB.y}" r="5"></circle>${rings}</svg>${buttons}</div>
      <div class="chips"></div><div class="hidden table"></div></div></ha-card>`;
    for (const name of names) {
      this.shadowRoot
        .getElementById(`node-${name}`)
        .addEventListener("click", () => this.moreInfo(this._entity(name)));
    }
    this._names = names;
    this._drawn = {};
    this._described = this._chipsDrawn = undefined;
  }

  _has(name) {
    const { sources, entities } = this._home;
    return {
      sun: Boolean(sources.pv_power),
      grid: true,
      house: true,
      battery: Boolean(sources.battery_power || sources.battery_level),
      market: Boolean(entities.delivery_power),
    }[name];
  }

  /** What a part opens: our entity, or the owner's sensor where ours would only repeat it. */
  _entity(name) {
    const { entities, sources } = this._home;
    const first = (...keys) =>
      keys.map((key) => entities[key] ?? sources[key]?.[0]).find((entity) => entity);
    return {
      sun: first("pv_power"),
      grid: first("grid_power", "grid_import_energy"),
      house: first("consumption_power", "consumption_energy"),
      battery: first("battery_level", "battery_power"),
      market: entities.best_rate,
    }[name];
  }

  /** Live watts of one kind, from the owner's own sensors; null if any is missing. */
  _live(kind) {
    const sensors = this._home.sources[kind];
    if (!sensors?.length) return null;
    let sum = 0;
    for (const sensor of sensors) {
      const value = watts(this._hass, sensor);
      if (value === null) return null;
      sum += value;
    }
    return this._home.inverted[kind] ? -sum : sum;
  }

  /** Watts of each node, positive towards the hub. */
  measure() {
    const sun = this._live("pv_power");
    const grid = this._live("grid_power");
    const battery = this._live("battery_power");
    const delivery = number(this._hass, this._home.entities.delivery_power) ?? 0;
    const known = [
      [this._home.sources.pv_power, sun],
      [this._home.sources.battery_power, battery],
    ].every(([configured, value]) => !configured || value !== null);
    const house =
      grid !== null && known ? Math.max(0, (sun ?? 0) + (battery ?? 0) + grid) : null;
    // What is delivered to neighbours leaves through the same wire as what the grid gets.
    const sold = grid === null ? delivery : Math.min(delivery, Math.max(0, -grid));
    return {
      sun,
      battery,
      house: house === null ? null : -house,
      market: -sold,
      grid: grid === null ? null : grid + sold,
      delivery,
    };
  }

  draw() {
    const now = this.measure();
    const level = number(this._hass, this._home.sources.battery_level?.[0]);
    const root = this.shadowRoot;
    for (const name of this._names) {
      const power = now[name];
      const shown = name === "market" ? now.delivery : power;
      root.querySelector(`#node-${name} .value`).textContent = formatPower(this._hass, shown);
      root.getElementById(`under-${name}`).textContent = this._under(name, now, level);
      this._wire(name, power);
    }
    const inflow = ["sun", "battery", "grid"]
      .map((name) => [name, Math.max(0, now[name] ?? 0)])
      .filter(([, power]) => power > 5);
    const total = inflow.reduce((sum, [, power]) => sum + power, 0);
    this._arcs("house", total ? inflow.map(([name, power]) => [name, power / total]) : []);
    if (this._names.includes("battery")) {
      this._arcs("battery", level === null ? [] : [["battery", level / 100]]);
      const icon = root.querySelector("#node-battery ha-icon");
      const step = Math.min(100, Math.max(10, Math.round((level ?? 50) / 10) * 10));
      icon.setAttribute("icon", step === 100 ? "mdi:battery" : `mdi:battery-${step}`);
    }
    this._describe(now, level);
    this._chips();
  }

  _under(name, now, level) {
    switch (name) {
      case "sun":
        return this.t("sun");
      case "house":
        return this.t("house");
      case "market":
        return now.delivery ? this.t("delivery") : this.t("market");
      case "grid":
        if (now.grid === null || Math.abs(now.grid) < 5) return this.t("grid");
        return `${this.t("grid")} · ${this.t(now.grid > 0 ? "importing" : "exporting")}`;
      default: {
        const charge = level === null ? this.t("battery") : `${Math.round(level)} %`;
        return now.battery === null ? charge : `${charge} · ${this._batteryText(now.battery)}`;
      }
    }
  }

  _batteryText(power) {
    if (power === null) return "–";
    if (Math.abs(power) < 5) return this.t("idle");
    return this.t(power > 0 ? "discharging" : "charging");
  }

  /** A dot runs along the wire, faster with more power; without motion it rests half way. */
  _wire(name, power) {
    const size = Math.abs(power ?? 0);
    const live = size >= 5;
    const wire = this.shadowRoot.getElementById(`wire-${name}`);
    const dot = this.shadowRoot.getElementById(`dot-${name}`);
    wire.classList.toggle("live", live);
    // The market's wire is drawn outwards, all others inwards.
    const backwards = name === "market" ? power > 0 : power < 0;
    const seconds = live ? Math.round((1 + 4 / (1 + size / 800)) * 2) / 2 : 0;
    const drawn = `${live}|${backwards}|${seconds}|${this._still}`;
    if (this._drawn[name] === drawn) return;
    this._drawn[name] = drawn;
    dot.replaceChildren();
    if (!live) {
      dot.setAttribute("cx", -99);
      dot.setAttribute("cy", -99);
      return;
    }
    if (this._still) {
      const middle = wire.getPointAtLength(wire.getTotalLength() * (backwards ? 0.6 : 0.4));
      dot.setAttribute("cx", middle.x);
      dot.setAttribute("cy", middle.y);
      return;
    }
    dot.setAttribute("cx", 0);
    dot.setAttribute("cy", 0);
    const motion = document.createElementNS("http://www.w3.org/2000/svg", "animateMotion");
    motion.setAttribute("dur", `${seconds}s`);
    motion.setAttribute("repeatCount", "indefinite");
    motion.setAttribute("calcMode", "linear");
    motion.setAttribute("keyPoints", backwards ? "1;0" : "0;1");
    motion.setAttribute("keyTimes", "0;1");
    motion.setAttribute("path", wire.getAttribute("d"));
    dot.append(motion);
  }

  /** Draw shares around a node, each in its source's colour. */
  _arcs(name, shares) {
    const { x, y } = NODES[name];
    const group = this.shadowRoot.getElementById(`arcs-${name}`);
    while (group.children.length > shares.length) group.lastElementChild.remove();
    let before = 0;
    shares.forEach(([source, share], index) => {
      let arc = group.children[index];
      if (!arc) {
        arc = document.createElementNS("http://www.w3.org/2000/svg", "circle");
        arc.setAttribute("class", "arc");
        arc.setAttribute("cx", x);
        arc.setAttribute("cy", y);
        arc.setAttribute("r", RADIUS);
        group.append(arc);
      }
      arc.style.setProperty("--node", `var(${NODES[source].color})`);
      arc.setAttribute("stroke-dasharray", `${share * RING} ${RING}`);
      arc.setAttribute("stroke-dashoffset", -before * RING);
      before += share;
    });
  }

  _describe(now, level) {
    const gridText =
      now.grid === null
        ? "–"
        : Math.abs(now.grid) < 5
        ? this.t("idle")
        : `${this.t(now.grid > 0 ? "importing" : "exporting")} ${formatPower(this._hass, now.grid)}`;
    const text = this.t("flow_text", {
      sun: formatPower(this._hass, now.sun),
      house: formatPower(this._hass, now.house),
      battery: `${this._batteryText(now.battery)}${level === null ? "" : ` (${Math.round(level)} %)`}`,
      grid: gridText,
    });
    const rows = this._names.map((name) => [
      name,
      this._under(name, now, level),
      formatPower(this._hass, name === "market" ? now.delivery : now[name]),
    ]);
    const described = JSON.stringify([text, rows]);
    if (described === this._described) return;
    this._described = described;
    this.shadowRoot.querySelector("svg").setAttribute("aria-label", text);
    for (const [name, label, value] of rows) {
      this.shadowRoot.getElementById(`node-${name}`).setAttribute("aria-label", `${label}: ${value}`);
    }
    this.shadowRoot.querySelector(".table").innerHTML = `<table>${rows
      .map(
        ([, label, value]) =>
          `<tr><th scope="row">${escapeHtml(label)}</th><td>${escapeHtml(value)}</td></tr>`,
      )
      .join("")}</table>`;
  }

  _chips() {
    const chips = [];
    const add = (key, icon, label, digits) => {
      const state = this.state(key);
      if (!state) return;
      const value = Number.parseFloat(state.state);
      const unit = state.attributes.unit_of_measurement ?? "";
      const shown = Number.isFinite(value)
        ? `${formatNumber(this._hass, value, digits)} ${unit}`
        : "–";
      chips.push([this._home.entities[key], icon, label, shown]);
    };
    // A suspension is the first thing to know.
    const permit = this.state("permit");
    if (permit && !["granted", "unknown", "unavailable"].includes(permit.state)) {
      const stated = this.t(`permit_${permit.state}`);
      chips.push([this._home.entities.permit, "mdi:alert-outline", this.t("permit"), stated]);
    }
    add("best_rate", "mdi:tag-outline", this.t("best_rate"), 3);
    add("energy_sold_today", "mdi:home-export-outline", this.t("sold_today"), 2);
    add("revenue_today", "mdi:cash-plus", this.t("revenue_today"), 2);
    add("balance", "mdi:wallet-outline", this.t("balance"), 2);
    const connected = this.state("ledger_connected")?.state === "on";
    chips.push([
      this._home.entities.ledger_connected,
      connected ? "mdi:lan-connect" : "mdi:lan-disconnect",
      this.t("ledger"),
      this.t(connected ? "link_on" : "link_off"),
    ]);
    const drawn = JSON.stringify(chips);
    if (drawn === this._chipsDrawn) return;
    this._chipsDrawn = drawn;
    const box = this.shadowRoot.querySelector(".chips");
    box.innerHTML = chips
      .map(
        ([, icon, label, value]) => `<button class="chip" type="button">
          <ha-icon icon="${icon}" aria-hidden="true"></ha-icon><span>${escapeHtml(label)}</span>
          <b>${escapeHtml(value)}</b></button>`,
      )
      .join("");
    [...box.children].forEach((chip, index) =>
      chip.addEventListener("click", () => this.moreInfo(chips[index][0])),
    );
  }

  getCardSize() {
    return 8;
  }
}

/* Sales and readings --------------------------------------------------------------------------- */

/** A card over `gridledger/overview`, which is asked again when something has happened. */
class GridLedgerOverviewCard extends GridLedgerCard {
  build() {
    this.shadowRoot.innerHTML = `<style>${STYLE}</style><ha-card><div class="card"></div></ha-card>`;
    this._body = this.shadowRoot.querySelector(".card");
  }

  draw() {
    const { entities } = this._home;
    const marks = ["trade", "last_reading", "readings_queued", "ledger_connected"]
      .map((key) => this._hass.states[entities[key]]?.state)
      .join("|");
    if (marks !== this._marks) {
      this._marks = marks;
      this._ask();
    }
  }

  async _ask() {
    if (this._asking) {
      this._again = true;
      return;
    }
    this._asking = true;
    try {
      const overview = await this._hass.callWS({
        type: `${DOMAIN}/overview`,
        entry_id: this._home.entry_id,
      });
      this._body.innerHTML = this.render(overview);
    } catch (error) {
      console.warn("GridLedger:", error);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
    this._asking = false;
    if (this._again) {
      this._again = false;
      this._ask();
    }
  }
}

class GridLedgerTradesCard extends GridLedgerOverviewCard {
  static rows = true;

  render({ trades, currency }) {
    const head = heading("mdi:handshake-outline", this.t("trades"));
    if (!trades.length) return `${head}<p class="empty">${escapeHtml(this.t("no_trades"))}</p>`;
    const rows = trades.slice(0, this._config.rows ?? 8).map((trade) => {
      const window = `${formatTime(this._hass, trade.window_start)} – ${formatTime(this._hass, trade.window_end)}`;
      const state = trade.state ? `<div class="how">${escapeHtml(this.t(`sale_${trade.state}`))}</div>` : "";
      return `<tr><td>${escapeHtml(window)}${state}</td>
        <td class="wide">${escapeHtml(nameOf(trade.supplier))}</td>
        <td class="num">${formatNumber(this._hass, trade.energy_kwh, 2)} kWh</td>
        <td class="num wide quiet">${escapeHtml(formatMoney(this._hass, trade.price_per_kwh, currency, 3))}</td>
        <td class="num"><b>${escapeHtml(formatExact(this._hass, trade.net, currency))}</b></td></tr>`;
    });
    return (
      head +
      table(
        this.t("trades"),
        [
          [this.t("when")],
          [this.t("supplier"), "wide"],
          [this.t("energy"), "num"],
          [`${this.t("price")}/kWh`, "num wide"],
          [this.t("net"), "num"],
        ],
        rows,
      )
    );
  }
}

const READING_ICONS = {
  committed: "mdi:check-decagram-outline",
  queued: "mdi:tray-full",
  sent: "mdi:send-clock-outline",
  refused: "mdi:alert-circle-outline",
};

class GridLedgerReadingsCard extends GridLedgerOverviewCard {
  static rows = true;

  render({ readings, channel, utility, channel_time: channelTime }) {
    const side = channelTime
      ? `${this.t("replay")}: ${formatInstant(this._hass, channelTime)}`
      : "";
    const head = heading("mdi:counter", this.t("readings"), side);
    const where = `<p class="quiet">${escapeHtml(this.t("ledger"))}: ${escapeHtml(channel)} ·
      ${escapeHtml(this.t("utility"))}: ${escapeHtml(nameOf(utility))}</p>`;
    if (!readings.length) {
      return `${head}<p class="empty">${escapeHtml(this.t("no_readings"))}</p>${where}`;
    }
    const rows = readings.slice(0, this._config.rows ?? 8).map(
      (reading) => `<tr><td>${escapeHtml(formatTime(this._hass, reading.start))}</td>
        <td class="num">${formatNumber(this._hass, reading.import_wh, 0)} Wh</td>
        <td class="num">${formatNumber(this._hass, reading.export_wh, 0)} Wh</td>
        <td class="wide quiet">${escapeHtml(this.t(`quality_${reading.quality}`))}</td>
        <td><span class="state"><ha-icon icon="${READING_ICONS[reading.state] ?? ""}" aria-hidden="true">
        </ha-icon>${escapeHtml(this.t(`state_${reading.state}`))}</span>${
          reading.quality === "measured" ? "" : `<div class="how narrow">${escapeHtml(this.t(`quality_${reading.quality}`))}</div>`
        }</td></tr>`,
    );
    return (
      head +
      table(
        this.t("readings"),
        [
          [this.t("interval")],
          [this.t("import"), "num"],
          [this.t("export"), "num"],
          [this.t("quality"), "wide"],
          [this.t("state")],
        ],
        rows,
      ) +
      where
    );
  }
}

/* Shares -------------------------------------------------------------------------------------- */

const SHARE_STYLE = `
  .bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; margin: 6px 0 8px;
         background: var(--divider-color); }
  .bar span { display: block; height: 100%; background: var(--part); min-width: 2px; }
  .legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 14px; margin: 0 0 16px;
            padding: 0; list-style: none; }
  .legend li { display: inline-flex; align-items: center; gap: 6px; }
  .legend i { width: 10px; height: 10px; border-radius: 5px; background: var(--part); }
  .legend b { font-weight: 500; font-variant-numeric: tabular-nums; }
  h3 { font-size: 14px; font-weight: 500; margin: 0; color: var(--secondary-text-color); }
`;

/** Today's shares: where the house's energy came from, and where the sun's went. */
class GridLedgerSharesCard extends GridLedgerCard {
  build() {
    this.shadowRoot.innerHTML = `<style>${STYLE}${SHARE_STYLE}</style><ha-card><div class="card">
      </div></ha-card>`;
    this._body = this.shadowRoot.querySelector(".card");
  }

  draw() {
    if (Date.now() - (this._asked ?? 0) < 60000) return;
    this._asked = Date.now();
    this._ask();
  }

  async _ask() {
    const { entities } = this._home;
    const keys = [
      "consumption_energy",
      "grid_import_energy",
      "grid_export_energy",
      "pv_energy",
      "battery_charge_energy",
      "battery_discharge_energy",
    ];
    const ids = (key) => (entities[key] ? [entities[key]] : (this._home.sources[key] ?? []));
    const start = new Date();
    start.setHours(0, 0, 0, 0);
    const sums = {};
    try {
      const found = await this._hass.callWS({
        type: "recorder/statistics_during_period",
        start_time: start.toISOString(),
        statistic_ids: keys.flatMap(ids),
        period: "5minute",
        types: ["change"],
        units: { energy: "kWh" },
      });
      for (const key of keys) {
        const rows = ids(key).flatMap((id) => found[id] ?? []);
        if (rows.length) sums[key] = rows.reduce((sum, row) => sum + (row.change ?? 0), 0);
      }
    } catch (error) {
      console.warn("GridLedger:", error);
    }
    // What is known at home is shown at once, also while the ledger is away.
    this._show(sums, { from_neighbours_kwh: 0, to_neighbours_kwh: 0, ...this._neighbours });
    try {
      const question = { type: `${DOMAIN}/neighbours`, entry_id: this._home.entry_id };
      this._neighbours = await this._hass.callWS(question);
      this._show(sums, this._neighbours);
    } catch (error) {
      console.warn("GridLedger:", error);
    }
  }

  _show(sums, neighbours) {
    const { entities } = this._home;
    const { from_neighbours_kwh: fromThem, to_neighbours_kwh: toThem } = neighbours;
    const sold = (number(this._hass, entities.energy_sold_today) ?? 0) + toThem;
    const used = sums.consumption_energy ?? 0;
    const bought = Math.min(used, sums.grid_import_energy ?? 0);
    const made = sums.pv_energy ?? 0;
    // What the battery gave away was not the sun's of this moment.
    const fromSun = (sums.grid_export_energy ?? 0) - (sums.battery_discharge_energy ?? 0);
    const given = Math.min(made, Math.max(0, fromSun));
    const traded = Math.min(given, sold);
    const kept = Math.min(made - given, sums.battery_charge_energy ?? 0);
    const html =
      heading("mdi:chart-donut", this.t("today")) +
      this._bar(this.t("use_from"), used, [
        [this.t("own_production"), used - bought, "--energy-solar-color, #ff9800"],
        [this.t("market"), Math.min(bought, fromThem), "--energy-grid-return-color, #8353d1"],
        [this.t("utility"), Math.max(0, bought - fromThem), "--energy-grid-consumption-color, #488fc2"],
      ]) +
      this._bar(this.t("sun_went"), made, [
        [this.t("house"), made - given - kept, "--energy-solar-color, #ff9800"],
        [this.t("battery"), kept, "--energy-battery-in-color, #f06292"],
        [this.t("market"), traded, "--energy-grid-return-color, #8353d1"],
        [this.t("grid"), given - traded, "--energy-grid-consumption-color, #488fc2"],
      ]);
    if (html !== this._shown) this._body.innerHTML = this._shown = html;
  }

  _bar(title, total, parts) {
    const head = `<h3>${escapeHtml(title)} · ${formatNumber(this._hass, total, 2)} kWh</h3>`;
    if (total < 0.001) return `${head}<p class="empty">${escapeHtml(this.t("nothing_yet"))}</p>`;
    const shown = parts.map(([name, part, color]) => ({
      name,
      color,
      percent: Math.round((100 * Math.max(0, part)) / total),
    }));
    const text = shown.map(({ name, percent }) => `${name} ${percent} %`).join(", ");
    return `${head}<div class="bar" role="img" aria-label="${escapeHtml(`${title}: ${text}`)}">${shown
      .filter(({ percent }) => percent)
      .map(({ percent, color }) => `<span style="width:${percent}%;--part:var(${color})"></span>`)
      .join("")}</div><ul class="legend">${shown
      .map(
        ({ name, percent, color }) => `<li style="--part:var(${color})"><i></i>${escapeHtml(name)}
          <b>${percent} %</b></li>`,
      )
      .join("")}</ul>`;
  }
}

/* The dashboard --------------------------------------------------------------------------------- */

// Core's graphs take colours by value: the same as in the flow.
const COLORS = {
  sun: "#ff9800",
  house: "#009ac7",
  grid: "#488fc2",
  battery: "#4db6ac",
  import: "#488fc2",
  export: "#8353d1",
};

/** One home's four views. Graphs show the owner's own sensors, which report most often. */
function viewsOf(home, t, place) {
  const { entities, sources, inverted, entry_id } = home;
  const best = (kind, ours, name) => {
    const own = sources[kind]?.length === 1 && !inverted[kind] ? sources[kind][0] : undefined;
    const entity = own ?? entities[ours];
    return entity ? [{ entity, name: t(name), color: COLORS[name] }] : [];
  };
  const power = [
    ...best("pv_power", "pv_power", "sun"),
    ...best("consumption_power", "consumption_power", "house"),
    ...best("grid_power", "grid_power", "grid"),
    ...best("battery_power", "battery_power", "battery"),
  ];
  const full = { grid_options: { columns: "full" } };
  const custom = (name) => ({ type: `custom:gridledger-${name}-card`, entry_id, ...full });
  const graph = (list, limits = {}) => ({
    type: "history-graph",
    hours_to_show: GRAPH_HOURS,
    entities: list,
    ...limits,
    ...full,
  });
  const section = (title, cards) => ({
    type: "grid",
    cards: [...(title ? [{ type: "heading", heading: title, ...full }] : []), ...cards],
  });
  const tiles = (keys) =>
    Object.entries(keys)
      .map(([key, name]) => [entities[key] ?? sources[key]?.[0], name])
      .filter(([entity]) => entity)
      .map(([entity, name]) => ({ type: "tile", entity, name: t(name) }));
  const level = sources.battery_level?.[0] ?? entities.battery_level;
  const energy = Object.entries({
    consumption_energy: "house",
    pv_energy: "sun",
    grid_import_energy: "import",
    grid_export_energy: "export",
  })
    .map(([key, name]) => [entities[key] ?? sources[key]?.[0], name])
    .filter(([entity]) => entity)
    .map(([entity, name]) => ({ entity, name: t(name), color: COLORS[name] }));
  const view = (key, icon, sections) => ({
    title: place ? `${home.title} · ${t(key)}` : t(key),
    path: place > 1 ? `${key}-${place}` : key,
    icon,
    type: "sections",
    max_columns: 2,
    sections,
  });
  return [
    view("activity", "mdi:home-lightning-bolt-outline", [
      section(home.title, [custom("flow"), custom("shares")]),
      section(t("power"), [
        ...(power.length ? [graph(power)] : []),
        ...(level ? [graph([{ entity: level, name: t("battery"), color: COLORS.battery }], { min_y_axis: 0, max_y_axis: 100 })] : []),
        custom("trades"),
        custom("readings"),
      ]),
    ]),
    view("plant", "mdi:solar-power-variant-outline", [
      section("", [custom("health")]),
      section("", [
        ...tiles({
          pv_power: "sun",
          consumption_power: "house",
          battery_level: "field_battery_level",
          battery_power: "field_battery_power",
          stored_energy: "stored_energy",
          grid_power: "grid",
        }),
        ...(energy.length
          ? [
              { type: "heading", heading: t("energy_by_day"), ...full },
              {
                type: "statistics-graph",
                entities: energy,
                chart_type: "bar",
                period: "day",
                days_to_show: 7,
                stat_types: ["change"],
                unit: "kWh",
                min_y_axis: 0,
                ...full,
              },
            ]
          : []),
        custom("supply"),
        { type: "map", entities: ["zone.home"], default_zoom: 14, aspect_ratio: "16:9", ...full },
      ]),
    ]),
    view("trade", "mdi:handshake-outline", [
      section("", [custom("sell"), custom("orders"), custom("trades")]),
      section("", [custom("market"), custom("plan"), custom("rules")]),
    ]),
    view("archive", "mdi:archive-outline", [
      { ...section("", [custom("archive")]), column_span: 2 },
    ]),
  ];
}

/* Registration ---------------------------------------------------------------------------------- */

const ELEMENTS = {
  "gridledger-flow-card": GridLedgerFlowCard,
  "gridledger-trades-card": GridLedgerTradesCard,
  "gridledger-readings-card": GridLedgerReadingsCard,
  "gridledger-shares-card": GridLedgerSharesCard,
};
for (const [name, element] of Object.entries(ELEMENTS)) {
  if (!customElements.get(name)) customElements.define(name, element);
}

window.customCards = window.customCards || [];
const DOCUMENTATION = "https://github.com/gridledger/gridledger/blob/main/docs/homeowners.md";
for (const [type, name, description] of [
  ["flow", "power flow", "Live power between sun, house, battery, neighbours and grid"],
  ["shares", "today's shares", "Where the house's energy came from, and where the sun's went"],
  ["trades", "sales", "What was sold, to whom and for how much"],
  ["readings", "readings", "The latest readings and their way into the ledger"],
  ["health", "plant health", "Sensors, ledger, meter and certificate, and what to do"],
  ["supply", "supply", "Supply permit, open bills, credit and guarantees of origin"],
  ["sell", "sell stored energy", "Quote, fees, final sum; authorise, and follow the sale"],
  ["market", "prices and order book", "What suppliers pay and ask, and the neighbours' book"],
  ["orders", "orders", "Orders of your own, and a form for another one"],
  ["plan", "the next 24 hours", "Prices, the battery's plan, and every reason"],
  ["rules", "trading rules", "What your rules trade, or would, and what they earn"],
  ["archive", "archive", "Any day's readings, trades and bills, with their proofs"],
]) {
  const card = {
    type: `gridledger-${type}-card`,
    name: `GridLedger: ${name}`,
    description,
    preview: true,
    documentationURL: DOCUMENTATION,
  };
  if (!window.customCards.some((known) => known.type === card.type)) window.customCards.push(card);
}

window.customStrategies = window.customStrategies || [];
if (!window.customStrategies.some((strategy) => strategy.type === DOMAIN)) {
  window.customStrategies.push({
    type: DOMAIN,
    strategyType: "dashboard",
    name: "GridLedger",
    description: "Your home and its microgrid, live",
    documentationURL: "https://github.com/gridledger/gridledger#readme",
  });
}

import(`./views.js${VERSION}`);
import(`./supply.js${VERSION}`);
