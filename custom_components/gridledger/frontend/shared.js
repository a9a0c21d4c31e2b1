/*
 * What all of GridLedger's cards share: homes, texts, numbers, styles, and the base of a card.
 */

export const DOMAIN = "gridledger";

let homesPromise;

/** The homes and their entities; asked once, and again after a failure. */
export function loadHomes(hass, fresh = false) {
  if (!homesPromise || fresh) {
    homesPromise = hass
      .callWS({ type: `${DOMAIN}/homes` })
      .then((result) => result.homes)
      .catch((error) => {
        homesPromise = undefined;
        throw error;
      });
  }
  return homesPromise;
}

const textPromises = new Map();
let loadedTexts;

/** The texts of the reader's language, English behind them. */
export function loadTexts(hass) {
  const language = hass.language || "en";
  if (!textPromises.has(language)) {
    textPromises.set(
      language,
      hass
        .callWS({
          type: "frontend/get_translations",
          language,
          category: "common",
          integration: [DOMAIN],
        })
        .then(({ resources }) => {
          const prefix = `component.${DOMAIN}.common.`;
          const texts = {};
          for (const [key, text] of Object.entries(resources)) {
            if (key.startsWith(prefix)) texts[key.slice(prefix.length)] = text;
          }
          loadedTexts = texts;
          return texts;
        })
        .catch((error) => {
          textPromises.delete(language);
          throw error;
        }),
    );
  }
  return textPromises.get(language);
}

export function escapeHtml(value) {
  return String(value).replace(
    /[&<>"']/g,
    (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[char],
  );
}

export function language(hass) {
  return hass.locale?.language || hass.language || "en";
}

/** The language whose digits the reader has chosen in the profile. */
function numbersOf(hass) {
  const chosen = { comma_decimal: "en-US", decimal_comma: "de", space_comma: "fr" };
  return chosen[hass.locale?.number_format] ?? language(hass);
}

export function formatNumber(hass, value, digits) {
  return new Intl.NumberFormat(numbersOf(hass), {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
    useGrouping: hass.locale?.number_format !== "none",
  }).format(value);
}

/** The clock and time zone that the reader has chosen in the profile. */
function clockOf(hass) {
  const { time_format: format, time_zone: zone } = hass.locale ?? {};
  return {
    ...(format === "12" || format === "24" ? { hour12: format === "12" } : {}),
    ...(zone === "server" ? { timeZone: hass.config?.time_zone } : {}),
  };
}

export function formatPower(hass, watts) {
  if (watts === null || watts === undefined) return "–";
  const size = Math.abs(watts);
  return size < 1000
    ? `${formatNumber(hass, Math.round(size), 0)} W`
    : `${formatNumber(hass, size / 1000, size < 10000 ? 2 : 1)} kW`;
}

export function formatMoney(hass, amount, currency, digits = 2) {
  try {
    return new Intl.NumberFormat(numbersOf(hass), {
      style: "currency",
      currency,
      signDisplay: "negative", // nothing has no sign
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    }).format(amount);
  } catch {
    return `${formatNumber(hass, amount, digits)} ${currency}`;
  }
}

/** Money to the cent where it is whole cents, else to a hundredth of one. */
export function formatExact(hass, amount, currency) {
  const whole = Math.abs(amount * 100 - Math.round(amount * 100)) < 1e-6;
  return formatMoney(hass, amount, currency, whole ? 2 : 4);
}

/** A day without its time; `2026-11-21` is that day everywhere. */
export function formatDay(hass, day) {
  const date = /^\d{4}-\d{2}-\d{2}$/.test(day) ? new Date(`${day}T12:00:00`) : new Date(day);
  return date.toLocaleDateString(language(hass), clockOf(hass));
}

/** The last day of a period that ends before a day. */
export function lastDay(day) {
  const [year, month, date] = day.split("-").map(Number);
  return new Date(Date.UTC(year, month - 1, date - 1)).toISOString().slice(0, 10);
}

/** The hour and minute alone, for what lies within a day. */
export function formatClock(hass, instant) {
  const options = { hour: "2-digit", minute: "2-digit", ...clockOf(hass) };
  return new Date(instant).toLocaleTimeString(language(hass), options);
}

/** A full hour of any day, `0` to `23`. */
export function formatHour(hass, hour) {
  const { hour12 } = clockOf(hass);
  const options = { hour: "2-digit", minute: "2-digit", ...(hour12 === undefined ? {} : { hour12 }) };
  return new Date(2000, 0, 1, hour).toLocaleTimeString(language(hass), options);
}

/** An instant's day and time, to the second. */
export function formatInstant(hass, iso) {
  return new Date(iso).toLocaleString(language(hass), clockOf(hass));
}

/** A utility's or supplier's name as people say it. */
export function nameOf(member) {
  return String(member).replace(/MSP$/, "");
}

export function formatTime(hass, iso) {
  const date = new Date(iso);
  const sameDay = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(language(hass), {
    ...(sameDay ? {} : { day: "numeric", month: "short" }),
    hour: "2-digit",
    minute: "2-digit",
    ...clockOf(hass),
  });
}

/** A state's number in watts, null where there is none: unavailable is not zero. */
export function watts(hass, entityId) {
  const state = hass.states[entityId];
  const value = state ? Number.parseFloat(state.state) : Number.NaN;
  if (!Number.isFinite(value)) return null;
  const factor = { mW: 0.001, W: 1, kW: 1000, MW: 1e6 }[state.attributes.unit_of_measurement];
  return factor === undefined ? null : value * factor;
}

export function number(hass, entityId) {
  const value = entityId ? Number.parseFloat(hass.states[entityId]?.state) : Number.NaN;
  return Number.isFinite(value) ? value : null;
}

export const STYLE = `
  :host { display: block; }
  ha-card { height: 100%; box-sizing: border-box; overflow: hidden; }
  .card { padding: 16px; container-type: inline-size; }
  @container (max-width: 430px) { .wide { display: none; } }
  @container (min-width: 431px) { .narrow { display: none; } }
  h2 { font-size: var(--ha-font-size-l, 16px); font-weight: 500; margin: 0 0 12px;
       color: var(--primary-text-color); display: flex; align-items: center; gap: 8px; }
  h2 ha-icon { color: var(--secondary-text-color); --mdc-icon-size: 20px; }
  h2 .side { margin-inline-start: auto; font-size: 12px; font-weight: 400;
             color: var(--secondary-text-color); }
  .scroll { overflow-x: auto; }
  table { width: 100%; border-collapse: collapse; font-size: 14px;
          font-variant-numeric: tabular-nums; }
  th { text-align: start; font-weight: 500; font-size: 12px; color: var(--secondary-text-color);
       padding: 4px 8px 6px 0; white-space: nowrap; }
  td { padding: 8px 8px 8px 0; border-top: 1px solid var(--divider-color); white-space: nowrap; }
  .num { text-align: end; }
  .num + :not(.num) { padding-inline-start: 8px; }
  @container (max-width: 430px) { .num + .wide + :not(.num) { padding-inline-start: 8px; } }
  .wrap { white-space: normal; }
  .how { font-size: 12px; line-height: 1.4; color: var(--secondary-text-color); white-space: normal; }
  th::first-letter, .why::first-letter { text-transform: uppercase; }
  th:last-child, td:last-child { padding-inline-end: 0; }
  .quiet { color: var(--secondary-text-color); }
  .away { color: var(--secondary-text-color); margin: 12px 0 0; line-height: 1.5; font-size: 13px; }
  .away:empty { display: none; }
  .empty { color: var(--secondary-text-color); margin: 8px 0; line-height: 1.5; }
  .state { display: inline-flex; align-items: center; gap: 4px; }
  .state ha-icon { --mdc-icon-size: 16px; }
  .hidden { position: absolute; width: 1px; height: 1px; overflow: hidden;
            clip-path: inset(50%); white-space: nowrap; }
`;

export function heading(icon, text, side = "") {
  return `<h2><ha-icon icon="${icon}" aria-hidden="true"></ha-icon>${escapeHtml(text)}
    <span class="side">${escapeHtml(side)}</span></h2>`;
}

export function table(name, headers, rows) {
  const head = headers
    .map(([text, kind = ""]) => `<th scope="col" class="${kind}">${escapeHtml(text)}</th>`)
    .join("");
  return `<div class="scroll" tabindex="0" role="region" aria-label="${escapeHtml(name)}"><table>
    <thead><tr>${head}</tr></thead><tbody>${rows.join("")}</tbody></table></div>`;
}

/** What an element is called across drawings: its data, or its label. */
function focusName(element) {
  const names = [...element.attributes]
    .filter(({ name }) => name.startsWith("data-") || name === "aria-label")
    .map(({ name, value }) => `[${name}="${CSS.escape(value)}"]`);
  return names.length ? element.localName + names.join("") : undefined;
}

/** A name for a decision of the owner's: sent twice, it still counts once. */
export function requestId() {
  return `CARD-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
}

/** An order's state as its owner sees it: how much of it was filled, and what became of that. */
export function orderState(card, order) {
  const { state, energy_kwh: wanted, filled_kwh: filled, progress } = order;
  const shown = state !== "cleared" ? state : !filled ? "unfilled" : filled < wanted ? "part_filled" : "filled";
  return [card.t(`order_${shown}`), progress ? card.t(`sale_${progress}`) : ""];
}

/** Base of the cards: finds its home and texts, redraws once a frame at most. */
export class GridLedgerCard extends HTMLElement {
  /** What the card picker begins with: the first home. */
  static getStubConfig() {
    return {};
  }

  /** The card's editor: Home Assistant draws it. */
  static getConfigForm() {
    const rows = this.rows ? [{ name: "rows", selector: { number: { min: 1, max: 30, mode: "box" } } }] : [];
    return {
      schema: [{ name: "entry_id", selector: { config_entry: { integration: DOMAIN } } }, ...rows],
      computeLabel: ({ name }) => loadedTexts?.[name === "rows" ? "card_rows" : "card_home"] ?? name,
    };
  }

  setConfig(config) {
    this._config = config || {};
  }

  set hass(hass) {
    this._hass = hass;
    if (!this._started) {
      this._started = true;
      this._begin();
    } else if (this._home) {
      this._soon();
    }
  }

  get texts() {
    return this._texts || {};
  }

  t(key, values = {}) {
    return (this.texts[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
  }

  async _begin() {
    if (!this.shadowRoot) this.attachShadow({ mode: "open" });
    try {
      this._texts = await loadTexts(this._hass);
      let homes = await loadHomes(this._hass);
      if (!homes.length) homes = await loadHomes(this._hass, true);
      this._home =
        homes.find((home) => home.entry_id === this._config.entry_id) ??
        (this._config.entry_id ? undefined : homes[0]);
    } catch (error) {
      this._texts = this._texts || {};
      console.warn("GridLedger:", error);
    }
    if (!this._home) {
      this.shadowRoot.innerHTML = `<style>${STYLE}</style><ha-card><div class="card">
        <p class="empty">${escapeHtml(this.t("not_set_up"))}</p></div></ha-card>`;
      // Set up later, or Home Assistant is still starting: look again.
      setTimeout(() => {
        homesPromise = undefined;
        this._started = false;
      }, 10000);
      return;
    }
    this.build();
    this._soon();
  }

  _soon() {
    if (this._frame) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = undefined;
      this.style.setProperty("--gl-scheme", this._hass.themes?.darkMode ? "dark" : "light");
      this.draw();
    });
  }

  state(key) {
    return this._hass.states[this._home.entities[key]];
  }

  moreInfo(entityId) {
    if (!entityId) return;
    this.dispatchEvent(
      new CustomEvent("hass-more-info", { bubbles: true, composed: true, detail: { entityId } }),
    );
  }

  build() {}

  draw() {}

  getCardSize() {
    return 5;
  }

  getGridOptions() {
    return { columns: "full", rows: "auto" };
  }
}

export const FORM_STYLE = `
  .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(92px, max-content));
           gap: 12px 24px; margin: 0 0 16px; }
  .facts > p { grid-column: 1 / -1; }
  .facts b { display: block; font-size: 19px; white-space: nowrap; font-weight: 500; font-variant-numeric: tabular-nums; }
  .facts span { display: block; font-size: 12px; color: var(--secondary-text-color); }
  form { display: flex; flex-wrap: wrap; gap: 12px; align-items: end; margin: 0; }
  .list > .scroll { margin-bottom: 12px; }
  label { display: flex; flex-direction: column; gap: 4px; font-size: 12px; flex: 1 1 120px;
          color: var(--secondary-text-color); }
  input, select { box-sizing: border-box; width: 100%; height: 44px; padding: 8px 12px;
          border: 1px solid var(--divider-color); border-radius: 8px; font: inherit;
          font-size: 16px; color: var(--primary-text-color); min-width: 0;
          background: var(--ha-card-background, var(--card-background-color, #fff));
          color-scheme: var(--gl-scheme, light); }
  button.do { min-height: 44px; padding: 0 20px; border-radius: 22px; border: 0; font: inherit;
          font-size: 14px; font-weight: 500; cursor: pointer; color: var(--text-primary-color, #fff);
          background: color-mix(in srgb, var(--primary-color) 76%, #000); }
  button.plain { background: none; border: 1px solid var(--divider-color);
          color: var(--primary-text-color); }
  button.small { min-height: 44px; padding: 0 12px; font-size: 13px; }
  button:disabled { opacity: 0.5; cursor: default; }
  button:focus-visible, input:focus-visible, select:focus-visible, summary:focus-visible {
          outline: 2px solid var(--primary-color); outline-offset: 2px; }
  dl { display: grid; grid-template-columns: 1fr auto; gap: 6px 0; margin: 16px 0; }
  dt { color: var(--secondary-text-color); }
  dd { margin: 0; text-align: end; font-variant-numeric: tabular-nums; }
  dl .sum { font-weight: 500; font-size: 18px; color: var(--primary-text-color);
            border-top: 1px solid var(--divider-color); padding-top: 8px; }
  .actions { display: flex; gap: 8px; flex-wrap: wrap; justify-content: flex-end; }
  .error { color: color-mix(in srgb, var(--error-color, #db4437) 75%, var(--primary-text-color)); margin: 12px 0 0; line-height: 1.4; }
  .result:focus { outline: none; }
  ol.way { list-style: none; margin: 16px 0; padding: 0; }
  ol.way li { display: flex; gap: 10px; align-items: center; min-height: 32px;
              color: var(--secondary-text-color); }
  ol.way li.done { color: var(--primary-text-color); }
  ol.way li.done ha-icon { color: var(--success-color, #43a047); }
  ol.way li.lacks ha-icon { color: var(--warning-color, #ffa600); }
  ol.way span::first-letter { text-transform: uppercase; }
  ol.way small { overflow-wrap: anywhere; }
`;

/** Why something could not be read, in the reader's words where the ledger is away. */
export function explain(card, error) {
  if (error?.code === "ledger_away") return `${card.t("away")}. ${card.t("do_ledger")}`;
  return error?.message ?? String(error);
}

/** A card that asks a websocket command again at most every `apart` milliseconds. */
export class GridLedgerAskingCard extends GridLedgerCard {
  get style_() {
    return "";
  }

  /** The heading's icon and text. */
  get head() {
    return [];
  }

  build() {
    this.shadowRoot.innerHTML = `<style>${STYLE}${this.style_}</style><ha-card><div class="card" aria-busy="true">
      <div class="head">${heading(this.head[0], this.t(this.head[1]))}</div><div class="body"></div>
      <p class="away" role="status"></p></div></ha-card>`;
    this._body = this.shadowRoot.querySelector(".body");
    this._away = this.shadowRoot.querySelector(".away");
  }

  /** Put content that is new into a part of the card; what has the focus keeps it if it stays. */
  fill(html, box = this._body) {
    if (html === this._shown) return;
    this._shown = html;
    const active = this.shadowRoot.activeElement;
    const place = active && box.contains(active) ? focusName(active) : undefined;
    box.innerHTML = html;
    if (place) box.querySelector(place)?.focus({ preventScroll: true });
  }

  /** What stands at the heading's end. */
  side(text) {
    this.shadowRoot.querySelector("h2 .side").textContent = text;
  }

  draw() {
    const connected = this.state("ledger_connected")?.state;
    const changed = connected !== this._connected;
    this._connected = connected;
    if (this._asking || (!changed && Date.now() - (this._asked ?? 0) < (this.apart ?? 15000))) return;
    this.ask();
  }

  /** Call an action of ours for this home; its response. */
  async act(service, data) {
    const { response } = await this._hass.callWS({
      type: "call_service",
      domain: DOMAIN,
      service,
      service_data: { config_entry: this._home.entry_id, ...data },
      return_response: true,
    });
    return response;
  }

  /** Ask for what the card shows. */
  async answer() {
    return this._hass.callWS({ ...this.question(), entry_id: this._home.entry_id });
  }

  async ask() {
    this._asking = true;
    this._asked = Date.now();
    try {
      this.show(await this.answer());
      this._known = new Date();
      this._tell("");
    } catch (error) {
      console.warn("GridLedger:", error);
      const kept = this._known && error?.code === "ledger_away";
      this._tell(kept ? this.t("as_of", { time: formatTime(this._hass, this._known) }) : explain(this, error));
    }
    this._asking = false;
    this.shadowRoot.querySelector(".card").setAttribute("aria-busy", "false");
  }

  _tell(text) {
    if (this._away.textContent !== text) this._away.textContent = text;
  }
}
