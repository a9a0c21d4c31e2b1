/*
 * The cards of GridLedger's other views: the plant's health, trading, and the archive.
 */

// The version in our own address: what we import is never older or newer than we are.
const VERSION = new URL(import.meta.url).search;
const {
  DOMAIN,
  escapeHtml,
  formatNumber,
  formatInstant,
  formatMoney,
  formatExact,
  formatDay,
  formatPower,
  formatClock,
  formatHour,
  formatTime,
  lastDay,
  nameOf,
  STYLE,
  heading,
  table,
  explain,
  orderState,
  requestId,
  GridLedgerCard,
  FORM_STYLE,
  GridLedgerAskingCard,
} = await import(`./shared.js${VERSION}`);

/* The plant ----------------------------------------------------------------------------------- */

const HEALTH_STYLE = `
  ul.health { list-style: none; margin: 0; padding: 0; }
  ul.health li { display: grid; grid-template-columns: 24px 1fr auto; gap: 2px 12px; padding: 10px 0;
                 border-top: 1px solid var(--divider-color); align-items: center; }
  ul.health li:first-child { border-top: 0; }
  ul.health ha-icon { --mdc-icon-size: 22px; }
  ul.health .good { color: var(--success-color, #43a047); }
  ul.health .warn { color: var(--warning-color, #ffa600); }
  ul.health .bad { color: var(--error-color, #db4437); }
  ul.health .what { font-weight: 500; }
  ul.health .how { grid-column: 2 / -1; color: var(--secondary-text-color); font-size: 13px;
                   line-height: 1.4; overflow-wrap: anywhere; }
  ul.health .now { text-align: end; font-variant-numeric: tabular-nums; }
`;
const HEALTH_ICONS = {
  good: "mdi:check-circle-outline",
  warn: "mdi:alert-outline",
  bad: "mdi:close-circle-outline",
};

class GridLedgerHealthCard extends GridLedgerAskingCard {
  get style_() {
    return HEALTH_STYLE;
  }

  get head() {
    return ["mdi:heart-pulse", "health"];
  }

  question() {
    return { type: `${DOMAIN}/plant` };
  }

  show(plant) {
    const rows = [];
    const add = (state, what, now = "", how = "") => rows.push({ state, what, now, how });
    for (const { field, entity_id: id, odd } of plant.sensors) {
      const state = this._hass.states[id];
      const shown = state ? this._hass.formatEntityState?.(state) ?? state.state : "–";
      const how = odd ? `${id} ${this.t(`warn_${odd}`)}. ${this.t("do_sensor")}` : "";
      add(odd ? (odd === "no_value" ? "bad" : "warn") : "good", this.t(`field_${field}`), shown, how);
    }
    add(
      plant.connected ? "good" : "bad",
      this.t("ledger"),
      this.t(plant.connected ? "link_on" : "link_off"),
      plant.connected
        ? `${plant.channel} · ${nameOf(plant.utility)} · ${plant.gateway}`
        : this.t("do_ledger"),
    );
    add(
      plant.metering && plant.meter_id ? "good" : "warn",
      this.t("meter"),
      plant.meter_id ?? "–",
      plant.metering && plant.meter_id ? "" : this.t("do_meter"),
    );
    add(
      plant.refused ? "warn" : plant.queued > 96 ? "warn" : "good",
      this.t("readings_queued"),
      formatNumber(this._hass, plant.queued, 0),
      plant.refused ? this.t("do_refused", { count: plant.refused }) : plant.queued > 96 ? this.t("do_queued") : "",
    );
    const days = Math.floor((new Date(plant.certificate_until) - Date.now()) / 86400000);
    add(
      days < 7 ? "bad" : "good",
      this.t("certificate"),
      formatDay(this._hass, plant.certificate_until),
      days < 7
        ? this.t("do_certificate")
        : this.t(plant.renews_itself ? "renews_itself" : "renews_by_hand"),
    );
    if (plant.permit) {
      const { state, due, next_at: next, limit_w: limit, currency } = plant.permit;
      const how = this.t(`do_permit_${state}`, {
        due: formatMoney(this._hass, due, currency),
        at: next ? formatTime(this._hass, next) : "–",
        limit: formatPower(this._hass, limit),
      });
      const kind = { granted: "good", warned: "warn" }[state] ?? "bad";
      add(kind, this.t("permit"), this.t(`permit_${state}`), state === "granted" ? "" : how);
    }
    for (const issue of plant.issues) add("warn", this.t("repair"), "", this.t(`issue_${issue}`));
    const worst = rows.some(({ state }) => state === "bad")
      ? "bad"
      : rows.some(({ state }) => state === "warn")
        ? "warn"
        : "good";
    const order = { bad: 0, warn: 1, good: 2 };
    rows.sort((one, other) => order[one.state] - order[other.state]);
    this.side(this.t(`health_${worst}`));
    const html =
      `<ul class="health">${rows
        .map(
          ({ state, what, now, how }) => `<li><ha-icon class="${state}" icon="${HEALTH_ICONS[state]}"
          role="img" aria-label="${escapeHtml(this.t(`health_${state}`))}"></ha-icon>
          <span class="what">${escapeHtml(what)}</span><span class="now">${escapeHtml(now)}</span>
          ${how ? `<span class="how">${escapeHtml(how)}</span>` : ""}</li>`,
        )
        .join("")}</ul>`;
    this.fill(html);
  }
}

/* Trading ------------------------------------------------------------------------------------- */

/** Quote, fees, final sum, authorise, and follow it until it is delivered. */
class GridLedgerSellCard extends GridLedgerAskingCard {
  get style_() {
    return FORM_STYLE;
  }

  get head() {
    return ["mdi:cash-plus", "sell"];
  }

  question() {
    return { type: `${DOMAIN}/market` };
  }

  build() {
    super.build();
    this._body.innerHTML = `<div class="facts"></div>
      <form><label>${escapeHtml(this.t("energy"))} (kWh)
        <input name="energy" type="number" min="0.1" step="0.1" inputmode="decimal" required></label>
      <label>${escapeHtml(`${this.t("from")} (${this.t("from_now")})`)}<input name="start" type="datetime-local"></label>
      <label>${escapeHtml(this.t("supplier"))}<select name="supplier"></select></label>
      <button class="do" type="submit">${escapeHtml(this.t("quote"))}</button></form>
      <div class="result" role="status" aria-live="polite" tabindex="-1"></div>`;
    this._result = this._body.querySelector(".result");
    this._form = this._body.querySelector("form");
    this._form.addEventListener("submit", (event) => {
      event.preventDefault();
      this._quote();
    });
  }

  show({ battery, prices, currency }) {
    const kwh = (value) =>
      value === null || value === undefined ? "–" : `${formatNumber(this._hass, value, 2)} kWh`;
    const facts = this._body.querySelector(".facts");
    const html = battery
      ? [
          [battery.stored_kwh, "stored"],
          [battery.reserve_kwh, "reserve"],
          [battery.sellable_kwh, "sellable"],
        ]
          .map(([value, key]) => `<div><b>${kwh(value)}</b><span>${escapeHtml(this.t(key))}</span></div>`)
          .join("")
      : `<p class="empty">${escapeHtml(this.t("no_battery"))}</p>`;
    if (facts.innerHTML !== html) facts.innerHTML = html;
    this._form.hidden = !battery;
    this._form.style.display = battery ? "" : "none";
    const now = Date.now();
    const buying = prices.filter(
      ({ kind, start, end }) => kind === "buy" && new Date(start) <= now && now < new Date(end),
    );
    const select = this._form.elements.supplier;
    const options = [["", this.t("best")]].concat(
      buying.map(({ supplier, price_per_kwh: price }) => [
        supplier,
        `${nameOf(supplier)} · ${formatMoney(this._hass, price, currency, 3)}`,
      ]),
    );
    const drawn = JSON.stringify(options);
    if (drawn !== this._options) {
      this._options = drawn;
      const chosen = select.value;
      select.innerHTML = options
        .map(([value, text]) => `<option value="${escapeHtml(value)}">${escapeHtml(text)}</option>`)
        .join("");
      select.value = chosen;
    }
    const energy = this._form.elements.energy;
    if (!energy.value && battery?.sellable_kwh > 0.1) {
      energy.value = Math.min(1, Math.floor(battery.sellable_kwh * 10) / 10).toFixed(1);
    }
  }

  _fail(error) {
    this._result.innerHTML = `<p class="error">${escapeHtml(explain(this, error))}</p>`;
  }

  async _quote() {
    const { energy, start, supplier } = this._form.elements;
    const button = this._form.querySelector("button");
    button.disabled = true;
    try {
      const quote = await this.act("quote_sale", {
        energy: Number.parseFloat(energy.value),
        ...(start.value ? { window_start: new Date(start.value).toISOString() } : {}),
        ...(supplier.value ? { supplier: supplier.value } : {}),
      });
      this._offer(quote);
    } catch (error) {
      this._fail(error);
    }
    button.disabled = false;
  }

  _offer(quote) {
    clearTimeout(this._later);
    this._sale = undefined;
    const money = (value, digits) => escapeHtml(formatMoney(this._hass, value, quote.currency, digits));
    this._result.innerHTML = `<dl>
      <dt>${escapeHtml(this.t("supplier"))}</dt><dd>${escapeHtml(nameOf(quote.supplier))}</dd>
      <dt>${escapeHtml(this.t("when"))}</dt><dd>${escapeHtml(formatTime(this._hass, quote.window_start))} – ${escapeHtml(formatTime(this._hass, quote.window_end))}</dd>
      <dt>${formatNumber(this._hass, quote.energy_kwh, 3)} kWh × ${money(quote.price_per_kwh, 4)}</dt><dd>${money(quote.gross, 4)}</dd>
      <dt>${escapeHtml(this.t("grid_fee"))}</dt><dd>${money(-quote.grid_fee, 4)}</dd>
      ${quote.tax ? `<dt>${escapeHtml(this.t("line_tax"))}</dt><dd>${money(-quote.tax, 4)}</dd>` : ""}
      <dt class="sum">${escapeHtml(this.t("net"))}</dt><dd class="sum">${money(quote.net, 4)}</dd></dl>
      <p class="empty">${escapeHtml(this.t("valid_until", { time: formatInstant(this._hass, quote.valid_until) }))}</p>
      <div class="actions"><button class="do plain" type="button" id="no">${escapeHtml(this.t("discard"))}</button>
      <button class="do" type="button" id="yes">${escapeHtml(this.t("authorise", { sum: formatExact(this._hass, quote.net, quote.currency) }))}</button></div>`;
    const root = this.shadowRoot;
    root.getElementById("no").addEventListener("click", () => {
      this._result.innerHTML = "";
      this._form.querySelector("button").focus();
    });
    root.getElementById("yes").addEventListener("click", () => this._sell(quote));
  }

  async _sell(quote) {
    quote.request ??= requestId();
    this._way = undefined;
    this._follow({ ...quote, status: "sent" });
    this._result.focus({ preventScroll: true });  // the button that had it is gone
    try {
      const sale = await this.act("sell_energy", { quote: quote.quote, request_id: quote.request });
      this._sale = sale;
      this._follow(sale);
      this._asked = 0;
    } catch (error) {
      // The same sale can be sent again: its name makes sure that it sells once.
      this._offer(quote);
      this._result.insertAdjacentHTML("beforeend", `<p class="error">${escapeHtml(explain(this, error))}</p>`);
    }
  }

  /** Show how far a sale is, and look again until it is settled. */
  _follow(sale, found = null) {
    clearTimeout(this._later);
    const committed = sale.status === "committed";
    const over = ["over", "delivered", "short", "settled"].includes(found?.state);
    const begun = over || Date.now() >= new Date(sale.window_start);
    const measured = over && found.delivered_kwh !== null;
    const short = measured && found.delivered_kwh < found.energy_kwh;
    const kwh = (value) => `${formatNumber(this._hass, value, 3)} kWh`;
    const settled = found?.state === "settled";
    const steps = [
      [true, this.t("step_authorised"), ""],
      [committed, this.t("step_committed"), committed ? `${this.t("block")} ${sale.block} · ${sale.transaction_id.slice(0, 16)}…` : ""],
      [committed && begun, this.t("step_delivering"), `${formatTime(this._hass, sale.window_start)} – ${formatTime(this._hass, sale.window_end)}`],
      [measured || settled, this.t(short ? "sale_short" : "step_delivered"), measured ? `${kwh(found.delivered_kwh)} / ${kwh(found.energy_kwh)}` : over ? this.t("sale_over") : "", short],
      [settled, this.t("step_settled"), over && !settled ? this.t("settles_later") : ""],
    ];
    const next = steps.findIndex(([done]) => !done);
    const html = `<ol class="way">${steps
      .map(
        ([done, text, more, lacks], index) => `<li class="${done ? "done" : ""} ${lacks ? "lacks" : ""}" ${index === next ? 'aria-current="step"' : ""}><ha-icon aria-hidden="true"
        icon="${lacks ? "mdi:alert-circle" : done ? "mdi:check-circle" : "mdi:circle-outline"}"></ha-icon><span>${escapeHtml(text)}
        <small>${escapeHtml(more)}</small></span></li>`,
      )
      .join("")}</ol>`;
    // Said again only if it says something new.
    if (html !== this._way) this._result.innerHTML = this._way = html;
    if (committed && !settled) this._later = setTimeout(() => this._lookAgain(sale, found), over ? 15000 : 5000);
  }

  async _lookAgain(sale, known) {
    let found = known;
    if (this.isConnected && Date.now() >= new Date(sale.window_end)) {
      try {
        const question = { type: `${DOMAIN}/sale`, entry_id: this._home.entry_id, trade_id: sale.trade_id };
        found = (await this._hass.callWS(question)).sale;
      } catch (error) {
        console.warn("GridLedger:", error);
      }
    }
    // Another quote has taken its place, or the owner has left the page.
    if (this._sale === sale && this.isConnected) this._follow(sale, found);
  }
}

const BOOK_STYLE = `
  .depth { display: grid; grid-template-columns: 1fr 1fr; gap: 0 16px; }
  .level { display: grid; grid-template-columns: auto auto; justify-content: space-between;
           padding: 5px 8px; font-size: 13px; font-variant-numeric: tabular-nums;
           background: linear-gradient(to var(--to, left), var(--tint) var(--part), transparent 0); }
  .rate { display: grid; grid-template-columns: 5.5em 1fr 4.5em 4.5em; gap: 12px;
          align-items: center; padding: 6px 0; font-size: 14px; }
  .rate.head { color: var(--secondary-text-color); padding: 10px 0 2px; }
  .rate.head > * { font-size: 12px; }
  .rate.head > :first-child { grid-column: span 2; }
  .rate b, .rate b + span, .rate.head > :nth-child(n + 2) { text-align: end; }
  .rate .track { height: 10px; border-radius: 5px; background: var(--divider-color); }
  .rate .track span { display: block; height: 100%; border-radius: 5px; background: var(--primary-color); }
  .rate b { font-weight: 500; font-variant-numeric: tabular-nums; }
  h3 { font-size: 13px; font-weight: 500; color: var(--secondary-text-color); margin: 12px 0 6px; }
`;

/** What suppliers pay today and tomorrow, and the neighbours' book for the next interval. */
class GridLedgerMarketCard extends GridLedgerAskingCard {
  get style_() {
    return BOOK_STYLE;
  }

  get head() {
    return ["mdi:tag-multiple-outline", "prices"];
  }

  question() {
    return { type: `${DOMAIN}/market` };
  }

  show({ prices, book, currency }) {
    const html =
      this._rates(prices, "buy", currency) +
      this._rates(prices, "sell", currency) +
      `<h3>${escapeHtml(this.t("order_book"))}${book ? ` · ${escapeHtml(formatTime(this._hass, book.start))}` : ""}</h3>` +
      this._book(book, currency);
    this.fill(html);
  }

  _rates(prices, kind, currency) {
    const wanted = prices.filter((price) => price.kind === kind);
    if (!wanted.length) {
      return kind === "buy" ? `<p class="empty">${escapeHtml(this.t("no_rates"))}</p>` : "";
    }
    const [today, tomorrow] = [...new Set(prices.map(({ start }) => start))].sort();
    const price = (supplier, day) =>
      wanted.find((one) => one.supplier === supplier && one.start === day)?.price_per_kwh;
    const most = Math.max(...wanted.map((one) => Math.abs(one.price_per_kwh)), 0.001);
    const money = (value) =>
      value === undefined ? "–" : escapeHtml(formatMoney(this._hass, value, currency, 3));
    const sign = kind === "buy" ? -1 : 1;
    const rows = [...new Set(wanted.map(({ supplier }) => supplier))]
      .sort((one, other) => sign * ((price(one, today) ?? 0) - (price(other, today) ?? 0)))
      .map(
        (supplier) => `<div class="rate"><span>${escapeHtml(nameOf(supplier))}</span>
        <div class="track" aria-hidden="true"><span style="width:${(100 * Math.max(0, price(supplier, today) ?? 0)) / most}%"></span></div>
        <b>${money(price(supplier, today))}</b><span>${money(price(supplier, tomorrow))}</span></div>`,
      );
    return `<div class="rate head"><span>${escapeHtml(`${this.t(kind === "buy" ? "suppliers_pay" : "suppliers_ask")} (${currency}/kWh)`)}</span>
      <span>${escapeHtml(this.t("today"))}</span><span>${escapeHtml(this.t("tomorrow"))}</span></div>${rows.join("")}`;
  }

  _book(book, currency) {
    if (!book) return `<p class="empty">${escapeHtml(this.t("no_book"))}</p>`;
    if (!book.bids.length && !book.offers.length) {
      return `<p class="empty">${escapeHtml(this.t("book_empty"))}</p>`;
    }
    const most = Math.max(...[...book.bids, ...book.offers].map(({ energy_kwh: energy }) => energy));
    const side = (levels, key, to, tint) =>
      `<div><h3>${escapeHtml(this.t(key))}</h3>${levels.length ? "" : `<p class="empty">${escapeHtml(this.t("nobody"))}</p>`}${levels
        .slice(0, 8)
        .map(
          ({ price_per_kwh: price, energy_kwh: energy }) => `<div class="level"
          style="--to:${to};--tint:${tint};--part:${(100 * energy) / most}%">
          <span>${escapeHtml(formatMoney(this._hass, price, currency, 3))}</span>
          <span>${formatNumber(this._hass, energy, 2)} kWh</span></div>`,
        )
        .join("")}</div>`;
    return `<div class="depth">${side(book.bids, "bids", "left", "rgba(67,160,71,.22)")}${side(book.offers, "offers", "right", "rgba(219,68,55,.2)")}</div>`;
  }
}

/** Open orders, and a form for another one. */
class GridLedgerOrdersCard extends GridLedgerAskingCard {
  get style_() {
    return FORM_STYLE;
  }

  get head() {
    return ["mdi:cart-outline", "orders"];
  }

  question() {
    return { type: `${DOMAIN}/market` };
  }

  build() {
    super.build();
    const next = new Date(Date.now() + 2 * 3600000);
    next.setMinutes(0, 0, 0);
    const local = new Date(next - next.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    this._body.innerHTML = `<div class="list"></div>
      <form><label>${escapeHtml(this.t("side"))}<select name="side"><option value="sell">${escapeHtml(this.t("offer"))}</option>
        <option value="buy">${escapeHtml(this.t("bid"))}</option></select></label>
      <label>${escapeHtml(this.t("energy"))} (kWh)<input name="energy" type="number" min="0.001" step="any" value="0.5" required></label>
      <label><span class="money">${escapeHtml(this.t("price"))}</span><input name="price" type="number" step="any" value="0.1" required></label>
      <label>${escapeHtml(this.t("interval"))}<input name="start" type="datetime-local" value="${local}" required></label>
      <button class="do plain" type="submit">${escapeHtml(this.t("place_order"))}</button></form>
      <p class="error" role="alert" hidden></p>`;
    this._list = this._body.querySelector(".list");
    this._error = this._body.querySelector(".error");
    const form = this._body.querySelector("form");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const { side, energy, price, start } = form.elements;
      this._do("place_order", {
        side: side.value,
        energy: Number.parseFloat(energy.value),
        price: Number.parseFloat(price.value),
        start: new Date(start.value).toISOString(),
      });
    });
    this._list.addEventListener("click", (event) => {
      const id = event.target.closest("button")?.dataset.order;
      if (id) this._do("cancel_order", { order_id: id });
    });
  }

  async _do(service, data) {
    this._error.hidden = true;
    this._error.textContent = "";
    try {
      await this.act(service, data);
    } catch (error) {
      this._error.textContent = explain(this, error);
      this._error.hidden = false;
    }
    this.ask();
  }

  show({ orders, currency }) {
    const rows = orders.map((order) => {
      const [state, progress] = orderState(this, order);
      return `<tr><td>${escapeHtml(this.t(order.side))}<div class="how">${escapeHtml(formatTime(this._hass, order.start))}</div></td>
        <td class="num">${formatNumber(this._hass, order.energy_kwh, 2)} kWh</td>
        <td class="num wide">${escapeHtml(formatMoney(this._hass, order.price_per_kwh, currency, 3))}</td>
        <td class="wrap">${escapeHtml(state)}${order.filled_kwh ? ` · ${formatNumber(this._hass, order.filled_kwh, 2)} kWh` : ""}${progress ? `<div class="how">${escapeHtml(progress)}</div>` : ""}</td>
        <td class="num">${order.state === "open" ? `<button class="do plain small" type="button" data-order="${escapeHtml(order.order_id)}">${escapeHtml(this.t("cancel"))}</button>` : ""}</td></tr>`;
    });
    const html = rows.length
      ? table(this.t("orders"), [[this.t("side")], [this.t("energy"), "num"], [`${this.t("price")}/kWh`, "num wide"], [this.t("state")], [""]], rows)
      : `<p class="empty">${escapeHtml(this.t("no_orders"))}</p>`;
    this.fill(html, this._list);
    this._body.querySelector(".money").textContent = `${this.t("price")} (${currency}/kWh)`;
  }
}

const PLAN_MODES = { auto: 0, hold: 1, charge: 2, discharge: 3 };
const PLAN_STYLE = `
  td.why { white-space: normal; min-width: 140px; width: 60%; }
  td.mode::first-letter { text-transform: uppercase; }
  .plan { display: flex; gap: 6px; margin: 4px 0; }
  th.unit { white-space: normal; }
  .plan .axis { display: flex; flex-direction: column; justify-content: space-between;
                font-size: 11px; color: var(--secondary-text-color); padding-bottom: 14px; }
  .plan svg { flex: 1; min-width: 0; height: 160px; }
  .plan polyline { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
  .plan polyline.buy { stroke: var(--energy-grid-consumption-color, #488fc2); }
  .plan polyline.sell { stroke: var(--energy-grid-return-color, #8353d1); stroke-dasharray: 5 3; }
  .plan .stored { fill: var(--energy-battery-out-color, #4db6ac); fill-opacity: 0.25; }
  .plan line { stroke: var(--divider-color); vector-effect: non-scaling-stroke; }
  .plan rect { fill: var(--divider-color); shape-rendering: crispEdges; }
  .plan rect.hold, .keys i.hold { fill: #9e9e9e; background: #9e9e9e; }
  .plan rect.charge, .keys i.charge { fill: #f06292; background: #f06292; }
  .plan rect.discharge, .keys i.discharge { fill: #4db6ac; background: #4db6ac; }
  .ticks { display: flex; font-size: 11px; color: var(--secondary-text-color); margin-inline-start: 30px; }
  .ticks span { flex: 1; }
  .keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; margin: 6px 0 10px;
          color: var(--secondary-text-color); }
  .keys i { display: inline-block; width: 14px; height: 10px; margin-inline-end: 6px;
            vertical-align: baseline; }
  .keys i.buy, .keys i.sell { height: 0; vertical-align: middle;
            border-top: 2px solid var(--energy-grid-consumption-color, #488fc2); }
  .keys i.sell { border-top: 2px dashed var(--energy-grid-return-color, #8353d1); }
  .keys i.stored { background: var(--energy-battery-out-color, #4db6ac); opacity: 0.4; }
`;

/** The next 24 hours: what the battery does when, at which prices, and why. */
class GridLedgerPlanCard extends GridLedgerAskingCard {
  get apart() {
    return 60000;
  }

  get head() {
    return ["mdi:calendar-clock", "plan"];
  }

  async answer() {
    return this.act("get_plan", {});
  }

  _why(one) {
    const known = this.texts[`reason_${one.reason_key}`];
    if (!known) return one.reason;
    return known.replace(/\{(\w+)\}/g, (_, name) => one.reason_values[name] ?? "");
  }

  show({ plan, dry_run: dry, appliances, currency }) {
    this._unit = `${currency}/kWh`;
    const now = Object.entries(appliances).map(
      ([name, one]) => `<tr><td>${escapeHtml(name)}</td><td>${escapeHtml(this.t(one.on ? "on" : "off"))}</td>
        <td class="why">${escapeHtml(this._why(one))}</td></tr>`,
    );
    const html =
      `<style>${PLAN_STYLE}</style>` +
      (now.length ? table(this.t("appliances"), [[this.t("appliances")], [this.t("now")], [this.t("why")]], now) : "") +
      this._chart(plan) +
      this._hours(plan, this.t("plan")) +
      (dry ? `<h3>${escapeHtml(this.t("dry_run"))}</h3>${this._hours(dry, this.t("dry_run"))}` : "");
    this.fill(html);
  }

  /** Prices as steps over what is stored, with the battery's mode below: the table's picture. */
  _chart(plan) {
    const slots = plan?.slots ?? [];
    if (slots.length < 2) return "";
    const [begin, end] = [new Date(slots[0].start), new Date(slots.at(-1).end)];
    const x = (instant) => ((new Date(instant) - begin) / (end - begin)) * 600;
    const prices = slots.flatMap(({ buy_price: buy, sell_price: sell }) => [buy, sell]);
    const [least, most] = [Math.min(0, ...prices), Math.max(...prices, 0.001)];
    const y = (price) => 110 - (100 * (price - least)) / (most - least);
    const steps = (key) =>
      slots.map((slot) => `${x(slot.start)},${y(slot[key])} ${x(slot.end)},${y(slot[key])}`).join(" ");
    const full = Math.max(...slots.map(({ stored_kwh: stored }) => stored), 0.001);
    const stored = slots.map((slot) => `${x(slot.end)},${110 - (100 * slot.stored_kwh) / full}`).join(" ");
    const modes = slots
      .map(({ start, end: until, mode }) => `<rect class="${mode in PLAN_MODES ? mode : ""}" x="${x(start)}" y="114" width="${x(until) - x(start)}" height="8"/>`)
      .join("");
    const span = (key, digits) => {
      const values = slots.map((slot) => slot[key]);
      const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => formatNumber(this._hass, value, digits));
      return low === high ? low : this.t("span", { least: low, most: high });
    };
    const text = this.t("plan_text", {
      buy: span("buy_price", 3),
      sell: span("sell_price", 3),
      stored: `${span("stored_kwh", 1)} kWh`,
    });
    const ticks = [0, 0.25, 0.5, 0.75]
      .map((part) => `<span>${escapeHtml(formatClock(this._hass, +begin + part * (end - begin)))}</span>`)
      .join("");
    const used = [...new Set(slots.map(({ mode }) => mode))].filter((mode) => mode in PLAN_MODES && mode !== "auto");
    const priced = (key) => `${this.t(key)}: ${span(key, 3)} ${this._unit}`;
    const legend = [["buy", priced("buy_price")], ["sell", priced("sell_price")]]
      .concat([["stored", `${this.t("stored_energy")}: ${span("stored_kwh", 1)} kWh`]])
      .concat(used.map((mode) => [mode, `${this.t("battery")}: ${this.t(`mode_${mode}`)}`]))
      .map(([kind, name]) => `<span><i class="${kind}"></i>${escapeHtml(name)}</span>`)
      .join("");
    return `<div class="plan"><div class="axis" aria-hidden="true"><span>${formatNumber(this._hass, most, 2)}</span><span>${formatNumber(this._hass, least, 2)}</span></div>
      <svg viewBox="0 0 600 122" preserveAspectRatio="none" role="img" aria-label="${escapeHtml(text)}">
      <polygon class="stored" points="0,110 ${x(slots[0].start)},${110 - (100 * slots[0].stored_kwh) / full} ${stored} 600,110"/>
      <line x1="0" x2="600" y1="${y(0)}" y2="${y(0)}"/><polyline class="buy" points="${steps("buy_price")}"/>
      <polyline class="sell" points="${steps("sell_price")}"/>${modes}</svg></div>
      <div class="ticks" aria-hidden="true">${ticks}</div><div class="keys">${legend}</div>`;
  }

  /** Slots that do the same for the same reason are one line. */
  _hours(plan, name) {
    if (!plan?.slots.length) return `<p class="empty">${escapeHtml(this.t("no_plan"))}</p>`;
    const spans = [];
    for (const slot of plan.slots) {
      const last = spans.at(-1);
      if (last && last.mode === slot.mode && last.reason_key === slot.reason_key) {
        last.end = slot.end;
        last.stored_kwh = slot.stored_kwh;
        last.sell.push(slot.sell_price);
        last.buy.push(slot.buy_price);
      } else spans.push({ ...slot, sell: [slot.sell_price], buy: [slot.buy_price] });
    }
    const range = (values) =>
      [...new Set([Math.min(...values), Math.max(...values)].map((value) => formatNumber(this._hass, value, 3)))].join("–");
    const rows = spans.map(
      (span) => `<tr><td>${escapeHtml(formatClock(this._hass, span.start))}</td>
        <td class="mode">${escapeHtml(this.texts[`mode_${span.mode}`] ?? span.mode)}</td>
        <td class="num wide">${range(span.sell)}<br>${range(span.buy)}</td>
        <td class="num">${formatNumber(this._hass, span.stored_kwh, 1)} kWh</td>
        <td class="why">${escapeHtml(this._why(span))}</td></tr>`,
    );
    return table(name, [[this.t("from")], [this.t("battery")], [`${this.t("sell_buy")} (${this._unit})`, "num wide unit"], [this.t("stored"), "num"], [this.t("why")]], rows);
  }
}

/* The archive --------------------------------------------------------------------------------- */

const ARCHIVE_STYLE = `
  .days { display: flex; gap: 8px; align-items: center; margin-bottom: 16px; }
  .days button.do { padding: 0 14px; }
  .days input { flex: 0 1 180px; width: 120px; }
  .days .csv { margin-inline-start: auto; }
  .days button { min-width: 44px; }
  .flows { display: grid; grid-template-columns: auto 1fr; gap: 4px 8px; }
  .flows .ticks, .flows .legend { grid-column: 2; margin: 0; }
  .scale { display: flex; flex-direction: column; justify-content: space-between; text-align: end;
           font-size: 11px; color: var(--secondary-text-color); }
  .chart { width: 100%; height: 150px; display: block; }
  .chart .in { fill: var(--energy-grid-consumption-color, #488fc2); }
  .chart .out { fill: var(--energy-grid-return-color, #8353d1); }
  .chart line { stroke: var(--divider-color); }
  .ticks { display: flex; font-size: 11px; color: var(--secondary-text-color); margin-bottom: 8px; }
  .ticks span { flex: 1; }
  .legend { display: flex; gap: 16px; font-size: 12px; color: var(--secondary-text-color); }
  .legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-inline-end: 6px; }
  h3 { font-size: 14px; font-weight: 500; margin: 20px 0 4px; }
  .proof { border: 1px solid var(--divider-color); border-radius: 8px; padding: 12px; margin: 4px 0;
           white-space: normal; overflow-wrap: anywhere; line-height: 1.6; }
  .proof dl { margin: 0; grid-template-columns: auto 1fr; gap: 2px 16px; }
  .proof dd, .proof dt { text-align: start; font-size: 13px; line-height: 1.6; }
  .proof tr.total td { border-top: 2px solid var(--divider-color); font-weight: 500; }
  .proof p { margin: 8px 0 0; font-size: 13px; }
  details summary::before { content: "▸"; margin-inline-end: 6px; }
  details[open] summary::before { content: "▾"; }
  details summary { cursor: pointer; min-height: 44px; display: flex; align-items: center;
                    color: var(--secondary-text-color); font-size: 13px; }
`;

/** What a commitment comes down to: its root. */
function rootOf(commitment) {
  return typeof commitment === "string" ? commitment : (commitment.root ?? JSON.stringify(commitment));
}

/** Any day: what flowed, what was traded and paid, its proof, and CSV. */
class GridLedgerArchiveCard extends GridLedgerCard {
  build() {
    this.shadowRoot.innerHTML = `<style>${STYLE}${FORM_STYLE}${ARCHIVE_STYLE}</style><ha-card><div class="card">
      ${heading("mdi:archive-outline", this.t("archive"))}
      <div class="days"><button class="do plain" id="before" type="button" aria-label="${escapeHtml(this.t("day_before"))}">‹</button>
      <input type="date" aria-label="${escapeHtml(this.t("day"))}">
      <button class="do plain" id="after" type="button" aria-label="${escapeHtml(this.t("day_after"))}">›</button>
      <button class="do plain csv" type="button">CSV</button></div>
      <div class="shown" role="status"><p class="empty">…</p></div><div class="of-bills"></div></div></ha-card>`;
    this._date = this.shadowRoot.querySelector("input");
    this._shownIn = this.shadowRoot.querySelector(".shown");
    this._set(new Date());
    this._date.addEventListener("change", () => this._ask());
    const step = (days) => {
      const day = this._day();
      day.setDate(day.getDate() + days);
      this._set(day);
      this._ask();
    };
    this.shadowRoot.getElementById("before").addEventListener("click", () => step(-1));
    this.shadowRoot.getElementById("after").addEventListener("click", () => step(1));
    this.shadowRoot.querySelector(".csv").addEventListener("click", () => this._csv());
    this._shownIn.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-transaction]");
      if (button) this._proof(button);
    });
    this._billsIn = this.shadowRoot.querySelector(".of-bills");
    this._billsIn.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-bill]");
      if (button) this._lines(button);
    });
    this._ask();
    this._askBills();
  }

  /** The supplier's bills: what they come to, what is open of them, and every line behind. */
  async _askBills() {
    try {
      const { bills } = await this._hass.callWS({ type: `${DOMAIN}/bills`, entry_id: this._home.entry_id });
      this._bills = bills;
      const money = (bill, value) => escapeHtml(formatMoney(this._hass, value, bill.currency, 2));
      const rows = bills.map((bill, index) => {
        const late = bill.due && new Date(bill.due) < Date.now();
        const due = bill.open > 0 && bill.due ? `${this.t(late ? "overdue" : "due")} ${formatDay(this._hass, bill.due)}` : "";
        const lines = bill.run
          ? `<button class="do plain small" type="button" aria-expanded="false" data-bill="${index}">${escapeHtml(this.t("show_lines"))}</button>`
          : `<span class="how">${escapeHtml(bill.reason)}</span>`;
        const days = [...new Set([bill.from_day, lastDay(bill.to_day)])].map((day) => formatDay(this._hass, day));
        return `<tr><td class="wide">${bill.number}</td><td class="wide">${escapeHtml(this.t(`bill_${bill.kind}`))}</td>
          <td>${escapeHtml(days.join(" – "))}</td><td class="num">${money(bill, bill.total)}</td>
          <td class="num"><b>${money(bill, bill.open)}</b>${due ? `<div class="how">${escapeHtml(due)}</div>` : ""}</td><td class="num">${lines}</td></tr>`;
      });
      this._billsIn.innerHTML = `<h3>${escapeHtml(this.t("supply_bills"))}</h3>${
        rows.length
          ? table(this.t("supply_bills"), [["#", "wide"], [this.t("kind"), "wide"], [this.t("period")], [this.t("total"), "num"], [this.t("open"), "num"], [""]], rows)
          : `<p class="empty">${escapeHtml(this.t("no_bills"))}</p>`
      }`;
    } catch (error) {
      // The day above says so if the ledger is away.
      const said = error?.code === "ledger_away" ? "" : explain(this, error);
      this._billsIn.innerHTML = `<p class="away">${escapeHtml(said)}</p>`;
    }
  }

  async _lines(button) {
    const row = button.closest("tr");
    const shown = row.nextElementSibling?.classList.contains("of-proof");
    button.setAttribute("aria-expanded", String(!shown));
    if (shown) {
      row.nextElementSibling.remove();
      return;
    }
    const below = document.createElement("tr");
    below.className = "of-proof";
    const cell = below.insertCell();
    cell.colSpan = row.cells.length;
    row.after(below);
    const document_ = this._bills[Number(button.dataset.bill)];
    try {
      const bill = await this._hass.callWS({
        type: `${DOMAIN}/bill`,
        entry_id: this._home.entry_id,
        from_day: document_.from_day,
        run: document_.run,
      });
      cell.innerHTML = `<div class="proof">${this._explained(document_, bill)}</div>`;
    } catch (error) {
      cell.innerHTML = `<p class="error">${escapeHtml(explain(this, error))}</p>`;
    }
  }

  /** Every line of a bill in words, its sum, and what proves it. */
  _explained(document_, bill) {
    const money = (value, digits = 2) => escapeHtml(formatMoney(this._hass, value, bill.currency, digits));
    const kwh = (value) => `${formatNumber(this._hass, value, 3)} kWh`;
    const rows = bill.lines.map((line) => {
      const quantity = this._quantity(line, money);
      // A band's or block's name tells more than its kind; most others repeat it.
      const plain = line.name.replace(/[-_ ]/g, "").toUpperCase();
      const name = plain === line.kind.replace("_", "").toUpperCase() ? "" : ` <span class="quiet">${escapeHtml(line.name)}</span>`;
      return `<tr><td>${escapeHtml(this.t(`line_${line.kind}`))}${name}
        <div class="how narrow">${quantity}</div><div class="how">${escapeHtml(this.t(`explain_${line.kind}`))}</div></td>
        <td class="num wide">${quantity}</td><td class="num">${money(line.amount, 4)}</td></tr>`;
    });
    rows.push(`<tr class="total"><td>${escapeHtml(this.t("total"))}</td><td class="wide"></td><td class="num">${money(bill.total)}</td></tr>`);
    if (bill.relief) rows.push(`<tr><td>${escapeHtml(this.t("line_social"))}</td><td class="wide"></td><td class="num">${money(-bill.relief)}</td></tr>`);
    const tariffs = [...new Set(bill.lines.map(({ tariff }) => tariff))].join(", ");
    const of = this.t("bill_of", { imported: kwh(bill.import_kwh), exported: kwh(bill.export_kwh), supplier: `${nameOf(document_.supplier)} ${tariffs}` });
    const said = [
      of,
      bill.estimated_intervals ? this.t("bill_estimated", { count: bill.estimated_intervals }) : "",
      bill.regulated === null ? "" : this.t("regulated_tariff", { amount: formatMoney(this._hass, bill.regulated, bill.currency, 2) }),
      document_.commitment ? this.t("bill_proof", { root: rootOf(document_.commitment) }) : "",
    ];
    return (
      table(this.t("show_lines"), [[this.t("kind")], [this.t("quantity"), "num wide"], [this.t("amount"), "num"]], rows) +
      said.filter(Boolean).map((text) => `<p class="quiet">${escapeHtml(text)}</p>`).join("")
    );
  }

  /** How much, at what price: kWh, days, kW or per cent, as its kind of line counts. */
  _quantity({ kind, quantity, price }, money) {
    const at = (value, unit, digits, each) =>
      `${formatNumber(this._hass, value, digits)} ${unit}${price ? ` × ${money(each, 4)}` : ""}`;
    if (kind === "standing") return at(quantity, "d", 0, price / 1e6);
    if (kind === "capacity") return at(quantity / 1000, "kW", 2, price / 1e6);
    if (kind === "tax") return `${money(quantity / 1e6)} × ${formatNumber(this._hass, price / 1e4, 2)} %`;
    if (kind === "rounding") return "";
    return at(quantity / 1000, "kWh", 3, price / 1e6);
  }

  draw() {
    const connected = this.state("ledger_connected")?.state;
    if (this._connected && connected === "on" && this._connected !== "on") {
      this._ask();
      this._askBills();
    }
    this._connected = connected;
  }

  _set(day) {
    const two = (value) => String(value).padStart(2, "0");
    this._date.value = `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())}`;
  }

  _day() {
    const [year, month, day] = this._date.value.split("-").map(Number);
    return year ? new Date(year, month - 1, day) : new Date(new Date().setHours(0, 0, 0, 0));
  }

  async _ask() {
    const start = this._day();
    const end = new Date(start);
    end.setDate(end.getDate() + 1);
    const asked = (this._asked = start.getTime());
    try {
      const found = await this._hass.callWS({
        type: `${DOMAIN}/archive`,
        entry_id: this._home.entry_id,
        start: start.toISOString(),
        end: end.toISOString(),
      });
      if (asked !== this._asked) return;
      this._found = found;
      this._shownIn.innerHTML = this._render(found);
    } catch (error) {
      this._shownIn.innerHTML = `<p class="away">${escapeHtml(explain(this, error))}</p>`;
    }
  }

  _render({ readings, trades, orders, postings, totals, currency, away }) {
    const exact = (value) => escapeHtml(formatExact(this._hass, value, currency));
    const money = (value, digits = 2) => escapeHtml(formatMoney(this._hass, value, currency, digits));
    const kwh = (value) => `${formatNumber(this._hass, value, 2)} kWh`;
    const facts = [
      [kwh(totals.import_kwh), "import"],
      [kwh(totals.export_kwh), "export"],
      ...(away ? [] : [[kwh(totals.sold_kwh), "sold"]]),
      ...(totals.from_neighbours_kwh ? [[kwh(totals.from_neighbours_kwh), "bought"]] : []),
      ...(away ? [] : [[exact(totals.net), "net"]]),
    ]
      .map(([value, key]) => `<div><b>${value}</b><span>${escapeHtml(this.t(key))}</span></div>`)
      .join("");
    const flows = `<div class="facts">${facts}</div>${this._chart(readings)}`;
    if (away) return `<p class="away">${escapeHtml(this.t("away_home"))}</p>${flows}`;
    const proof = (id) =>
      id ? `<button class="do plain small" type="button" data-transaction="${escapeHtml(id)}">${escapeHtml(this.t("show_proof"))}</button>` : "";
    const tradeRows = trades.map(
      (trade) => `<tr><td>${escapeHtml(formatTime(this._hass, trade.window_start))}</td>
        <td class="wide">${escapeHtml(nameOf(trade.supplier))}</td>
        <td class="num">${kwh(trade.energy_kwh)}</td>
        <td class="num wide">${money(trade.gross, 4)} − ${money(trade.grid_fee, 4)}${trade.tax ? ` − ${money(trade.tax, 4)}` : ""}</td>
        <td class="num"><b>${exact(trade.net)}</b></td><td class="num">${proof(trade.transaction_id)}</td></tr>`,
    );
    const orderRows = orders.map(
      (order) => `<tr><td>${escapeHtml(formatTime(this._hass, order.start))}</td><td>${escapeHtml(this.t(order.side))}</td>
        <td class="num">${kwh(order.filled_kwh)}<span class="wide quiet"> / ${kwh(order.energy_kwh)}</span></td>
        <td class="wide">${escapeHtml(orderState(this, order)[0])}</td><td class="num"><b>${exact(order.amount)}</b></td><td class="num">${proof(order.transaction_id)}</td></tr>`,
    );
    const postingRows = postings.map(
      (posting) => `<tr><td>${escapeHtml(formatTime(this._hass, posting.at))}</td>
        <td>${escapeHtml(this.t(`kind_${posting.kind}`).replace(/^kind_/, ""))}</td>
        <td class="wide quiet">${escapeHtml(this._party(posting.counterparty))}</td>
        <td class="num"><b>${exact(posting.amount)}</b></td><td class="num">${proof(posting.transaction_id)}</td></tr>`,
    );
    return `${flows}
      <h3>${escapeHtml(this.t("trades"))}</h3>${
        tradeRows.length
          ? table(this.t("trades"), [[this.t("when")], [this.t("supplier"), "wide"], [this.t("energy"), "num"], [this.t("with_fee"), "num wide"], [this.t("net"), "num"], [""]], tradeRows)
          : `<p class="empty">${escapeHtml(this.t("nothing_that_day"))}</p>`
      }${
        orderRows.length
          ? `<h3>${escapeHtml(this.t("with_neighbours"))}</h3>${table(this.t("with_neighbours"), [[this.t("interval")], [this.t("side")], [this.t("filled"), "num"], [this.t("state"), "wide"], [this.t("amount"), "num"], [""]], orderRows)}`
          : ""
      }<h3>${escapeHtml(this.t("bills"))}</h3>${
        postingRows.length
          ? table(this.t("bills"), [[this.t("when")], [this.t("kind")], [this.t("counterparty"), "wide"], [this.t("amount"), "num"], [""]], postingRows)
          : `<p class="empty">${escapeHtml(this.t("nothing_that_day"))}</p>`
      }`;
  }

  /** An account's name as people say it. */
  _party(account) {
    if (account.startsWith("ext/bank/")) return this.t("bank");
    if (account === "CLEARING-MARKET") return this.t("market");
    const name = account.replace(/^(SUPPLIER|GRID|BALANCE)-/, "");
    return name === account ? name : name[0] + name.slice(1).toLowerCase();
  }

  /** Import upwards and export downwards by the hour, with its table behind. */
  _chart(readings) {
    if (!readings.length) return `<p class="empty">${escapeHtml(this.t("no_readings_day"))}</p>`;
    const hours = Array.from({ length: 24 }, () => [0, 0]);
    for (const { start: at, import_wh: taken, export_wh: given } of readings) {
      const hour = new Date(at).getHours();  // as its clock shows: days of 23 and 25 hours, too
      hours[hour][0] += taken;
      hours[hour][1] += given;
    }
    const most = Math.max(...hours.flat());
    const bars = hours
      .map(([taken, given], hour) => {
        const x = 6 + hour * 24.6;
        const up = (64 * taken) / most;
        const down = (64 * given) / most;
        return `<rect class="in" x="${x}" y="${70 - up}" width="18" height="${up}"/>
          <rect class="out" x="${x}" y="${70}" width="18" height="${down}"/>`;
      })
      .join("");
    const ticks = [0, 6, 12, 18]
      .map((hour) => `<span>${escapeHtml(formatHour(this._hass, hour))}</span>`)
      .join("");
    const rows = hours
      .map(
        ([taken, given], hour) => `<tr><td>${escapeHtml(formatHour(this._hass, hour))}</td>
        <td class="num">${formatNumber(this._hass, taken, 0)} Wh</td><td class="num">${formatNumber(this._hass, given, 0)} Wh</td></tr>`,
      )
      .filter((_, hour) => hours[hour][0] || hours[hour][1]);
    const odd = readings.filter(({ quality }) => quality !== "measured").length;
    const waiting = readings.filter(({ state }) => state !== "committed").length;
    const note = this.t("readings_note", { count: readings.length, estimated: odd, waiting });
    if (!most) return `<p class="empty">${escapeHtml(note)}</p>`; // an empty chart looks broken
    const scale = `${formatNumber(this._hass, most / 1000, most < 100 ? 3 : 2)} kWh`;
    const drawn = `<div class="scale" aria-hidden="true"><span>${scale}</span><span>0</span><span>${scale}</span></div>
      <svg class="chart" viewBox="0 0 600 140" preserveAspectRatio="none" role="img"
      aria-label="${escapeHtml(`${this.t("import")} / ${this.t("export")}. ${note}`)}"><line x1="0" x2="600" y1="70" y2="70"/>${bars}</svg><div class="ticks" aria-hidden="true">${ticks}</div>
      <div class="legend"><span><i style="background:var(--energy-grid-consumption-color, #488fc2)"></i>${escapeHtml(this.t("import"))}</span>
      <span><i style="background:var(--energy-grid-return-color, #8353d1)"></i>${escapeHtml(this.t("export"))}</span></div>`;
    return `<div class="flows">${drawn}</div><details><summary>${escapeHtml(note)}</summary>${table(this.t("readings"), [[this.t("interval")], [this.t("import"), "num"], [this.t("export"), "num"]], rows)}</details>`;
  }

  async _proof(button) {
    const row = button.closest("tr");
    if (row.nextElementSibling?.classList.contains("of-proof")) {
      row.nextElementSibling.remove();
      return;
    }
    const below = document.createElement("tr");
    below.className = "of-proof";
    const cell = below.insertCell();
    cell.colSpan = row.cells.length;
    row.after(below);
    try {
      const proof = await this._hass.callWS({
        type: `${DOMAIN}/proof`,
        entry_id: this._home.entry_id,
        transaction_id: button.dataset.transaction,
      });
      const line = (key, value) => `<dt>${escapeHtml(this.t(key))}</dt><dd>${escapeHtml(value)}</dd>`;
      cell.innerHTML = `<div class="proof"><dl>
        ${line("block", `${proof.block} (${proof.position + 1}/${proof.transactions_in_block})`)}
        ${line("transaction", proof.transaction_id)}
        ${line("state", this.t(proof.valid ? "valid" : "invalid", { code: proof.code }))}
        ${line("endorsed_by", proof.endorsed_by.map(({ member, node }) => `${nameOf(member)} (${node})`).join(", "))}
        ${line("submitted", formatInstant(this._hass, proof.submitted_at))}
        ${line("data_hash", proof.data_hash)}</dl></div>`;
    } catch (error) {
      cell.innerHTML = `<p class="error">${escapeHtml(explain(this, error))}</p>`;
    }
  }

  _csv() {
    if (!this._found) return;
    const { readings, trades, orders, postings } = this._found;
    for (const [name, rows] of Object.entries({ readings, trades, orders, postings })) {
      if (!rows.length) continue;
      const columns = Object.keys(rows[0]);
      const cell = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replace(/"/g, '""')}"` : String(value ?? ""));
      const text = [columns, ...rows.map((row) => columns.map((column) => row[column]))]
        .map((row) => row.map(cell).join(","))
        .join("\n");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = `gridledger-${name}-${this._date.value}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }
  }
}

/* Registration -------------------------------------------------------------------------------- */

for (const [name, element] of Object.entries({
  "gridledger-health-card": GridLedgerHealthCard,
  "gridledger-sell-card": GridLedgerSellCard,
  "gridledger-market-card": GridLedgerMarketCard,
  "gridledger-orders-card": GridLedgerOrdersCard,
  "gridledger-plan-card": GridLedgerPlanCard,
  "gridledger-archive-card": GridLedgerArchiveCard,
})) {
  if (!customElements.get(name)) customElements.define(name, element);
}
