/*
 * How the home stands with its supplier and its network, and what its trading rules do.
 */

// The version in our own address: what we import is never older or newer than we are.
const VERSION = new URL(import.meta.url).search;
const {
  DOMAIN,
  escapeHtml,
  formatNumber,
  formatPower,
  formatMoney,
  formatDay,
  formatTime,
  heading,
  nameOf,
  table,
  FORM_STYLE,
  GridLedgerAskingCard,
} = await import(`./shared.js${VERSION}`);

/* Supply -------------------------------------------------------------------------------------- */

const SUPPLY_STYLE = `
  .permit { display: grid; grid-template-columns: 28px 1fr; gap: 2px 12px; align-items: center; }
  .permit ha-icon { --mdc-icon-size: 26px; }
  .permit.good ha-icon { color: var(--success-color, #43a047); }
  .permit.warn ha-icon { color: var(--warning-color, #ffa600); }
  .permit.bad ha-icon { color: var(--error-color, #db4437); }
  .permit b { font-weight: 500; }
  .permit p { grid-column: 2; margin: 0; font-size: 13px; line-height: 1.4;
              color: var(--secondary-text-color); }
  h3 { font-size: 14px; font-weight: 500; margin: 20px 0 4px; }
  .row { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; min-height: 44px;
         border-top: 1px solid var(--divider-color); font-size: 14px; padding: 4px 0; }
  .row > :first-child { flex: 1 1 150px; }
  .row b { font-weight: 500; font-variant-numeric: tabular-nums; }
  .row small { display: block; font-size: 12px; line-height: 1.4; color: var(--secondary-text-color); }
`;
const PERMIT_ICONS = {
  granted: ["good", "mdi:check-circle-outline"],
  warned: ["warn", "mdi:alert-outline"],
  limited: ["bad", "mdi:speedometer-slow"],
  suspended: ["bad", "mdi:close-circle-outline"],
};

/** Supply permit, open bills, credit, response events and guarantees of origin. */
class GridLedgerSupplyCard extends GridLedgerAskingCard {
  get style_() {
    return FORM_STYLE + SUPPLY_STYLE;
  }

  question() {
    return { type: `${DOMAIN}/supply` };
  }

  build() {
    super.build();
    this._body.innerHTML = `${heading("mdi:transmission-tower", this.t("supply"))}
      <div class="shown"></div><div class="result" role="status" aria-live="polite"></div>`;
    this._list = this._body.querySelector(".shown");
    this._result = this._body.querySelector(".result");
    this._list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.pay) this._pay(button);
      else this._join(button);
    });
  }

  failed(error) {
    console.warn("GridLedger:", error);
    if (!this._list.childElementCount) {
      this._list.innerHTML = `<p class="empty">${escapeHtml(this.t("away"))}: ${escapeHtml(error.message ?? error)}</p>`;
    }
  }

  show(supply) {
    const html = [
      this._permit(supply),
      this._bills(supply),
      this._credit(supply),
      this._responses(supply),
      this._guarantees(supply),
    ].join("");
    // What the owner is about to confirm stays under the pointer.
    if (html === this._shown || this._sure) return;
    this._shown = html;
    this._list.innerHTML = html;
  }

  _permit({ permit }) {
    if (!permit) return "";
    const [kind, icon] = PERMIT_ICONS[permit.state] ?? PERMIT_ICONS.warned;
    const how = this.t(`do_permit_${permit.state}`, {
      due: formatMoney(this._hass, permit.due, permit.currency),
      at: permit.next_at ? formatTime(this._hass, permit.next_at) : "–",
      limit: formatPower(this._hass, permit.limit_w),
    });
    return `<div class="permit ${kind}"><ha-icon icon="${icon}" aria-hidden="true"></ha-icon>
      <b>${escapeHtml(this.t("permit"))}: ${escapeHtml(this.t(`permit_${permit.state}`))}</b>
      <p>${escapeHtml(how)}</p></div>`;
  }

  _bills({ supplied, bills, billed_to: to, currency }) {
    if (!supplied) return "";
    const rows = bills.map((bill) => {
      const late = new Date(bill.due) < Date.now();
      const sum = formatMoney(this._hass, bill.open - bill.disputed, currency);
      const disputed = bill.disputed
        ? ` · ${this.t("disputed", { amount: formatMoney(this._hass, bill.disputed, currency) })}`
        : "";
      const pay = bill.open > bill.disputed
        ? `<button class="do plain small" type="button" data-pay="${Number(bill.number)}" data-sum="${escapeHtml(sum)}">${escapeHtml(this.t("pay", { sum }))}</button>`
        : "";
      return `<div class="row"><span>#${Number(bill.number)} · <b>${escapeHtml(formatMoney(this._hass, bill.open, currency))}</b>
        <small>${escapeHtml(`${this.t(late ? "overdue" : "due")} ${formatDay(this._hass, bill.due)}${disputed}`)}</small></span>${pay}</div>`;
    });
    const none = `<p class="empty">${escapeHtml(this.t("no_open_bills"))} ${to ? escapeHtml(this.t("billed_to", { day: formatDay(this._hass, to) })) : ""}</p>`;
    return `<h3>${escapeHtml(this.t("open_bills"))}</h3>${rows.join("") || none}`;
  }

  _credit({ prepaid, currency }) {
    if (!prepaid) return "";
    const left = [
      formatMoney(this._hass, prepaid.credit, currency),
      prepaid.credit_kwh ? `${formatNumber(this._hass, prepaid.credit_kwh, 1)} kWh` : "",
      prepaid.days_left === null ? "" : this.t("days_left", { days: prepaid.days_left }),
      prepaid.low ? this.t("prepaid_low") : "",
    ];
    return `<h3>${escapeHtml(this.t("prepaid"))}</h3><p class="empty">${escapeHtml(left.filter(Boolean).join(" · "))}</p>`;
  }

  _responses({ responses, currency }) {
    if (!responses.length) return "";
    const rows = responses.map((event) => {
      const part = event.participation;
      const open = new Date(event.opt_in_until) > Date.now();
      const leave = part === "opted_in";
      const button = open && (leave || !part || part === "left")
        ? `<button class="do plain small" type="button" data-event="${escapeHtml(event.event_id)}" data-leave="${leave}">${escapeHtml(this.t(leave ? "leave" : "join"))}</button>`
        : "";
      const reward = `${formatMoney(this._hass, event.reward_per_kwh, currency, 3)}/kWh`;
      const more = [`${formatTime(this._hass, event.start)} – ${formatTime(this._hass, event.end)}`, reward];
      if (part) more.push(this.t(`part_${part}`));
      return `<div class="row"><span>${escapeHtml(this.t(`response_${event.kind}`))}
        <small>${escapeHtml(more.join(" · "))}</small></span>${button}</div>`;
    });
    return `<h3>${escapeHtml(this.t("responses"))}</h3>${rows.join("")}`;
  }

  _guarantees({ certificates }) {
    const title = `<h3>${escapeHtml(this.t("guarantees"))}</h3>`;
    if (!certificates.length) {
      return `${title}<p class="empty">${escapeHtml(this.t("no_guarantees"))}</p>`;
    }
    const rows = certificates.slice(0, 12).map(
      ({ month, plant_id: plant, count, state, claimed_for: claimed }) => `<div class="row"><span>${escapeHtml(month)} · ${escapeHtml(plant)}
        <small>${escapeHtml([this.t(`guarantee_${state}`), claimed].filter(Boolean).join(" · "))}</small></span>
        <b>${formatNumber(this._hass, count, 0)}</b></div>`,
    );
    return title + rows.join("");
  }

  async _call(service, data) {
    const { response } = await this._hass.callWS({
      type: "call_service",
      domain: DOMAIN,
      service,
      service_data: { config_entry: this._home.entry_id, ...data },
      return_response: true,
    });
    return response;
  }

  /** The first press asks, the second pays. */
  async _pay(button) {
    const { pay: number, sum } = button.dataset;
    if (this._sure !== number) {
      this._sure = number;
      button.textContent = this.t("pay_sure", { sum });
      button.classList.remove("plain");
      clearTimeout(this._forget);
      this._forget = setTimeout(() => this._settle(), 15000);
      return;
    }
    button.disabled = true;
    // One name for this decision: sent twice, it still pays once.
    this._requests ??= {};
    const id = (this._requests[number] ??= `CARD-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`);
    try {
      const paid = await this._call("pay_bill", { number: Number(number), request_id: id });
      delete this._requests[number];
      const amount = formatMoney(this._hass, paid.amount, paid.currency);
      this._result.innerHTML = `<p class="empty">${escapeHtml(this.t("paid_in_block", { sum: amount, block: paid.block }))}</p>`;
    } catch (error) {
      this._result.innerHTML = `<p class="error">${escapeHtml(error.message ?? error)}</p>`;
    }
    this._settle();
  }

  _settle() {
    clearTimeout(this._forget);
    this._sure = this._shown = undefined;
    this.ask();
  }

  async _join(button) {
    button.disabled = true;
    try {
      const { event, leave } = button.dataset;
      await this._call("join_response_event", { event_id: event, leave: leave === "true" });
      this._result.innerHTML = "";
    } catch (error) {
      this._result.innerHTML = `<p class="error">${escapeHtml(error.message ?? error)}</p>`;
    }
    this._shown = undefined;
    this.ask();
  }
}

/* Trading rules ------------------------------------------------------------------------------- */

/** What the owner's rules trade, or would, and what became of it. */
class GridLedgerRulesCard extends GridLedgerAskingCard {
  get style_() {
    return SUPPLY_STYLE;
  }

  question() {
    return { type: `${DOMAIN}/rules` };
  }

  show({ rules, currency }) {
    const rows = rules.map((rule) => {
      const state = this._hass.states[rule.entity_id];
      const status = state ? (this._hass.formatEntityState?.(state) ?? state.state) : "–";
      const sum = formatMoney(this._hass, rule.earned, currency);
      const energy = `${formatNumber(this._hass, rule.traded_kwh, 2)} kWh`;
      const said = [
        this.t("traded_today", { energy }),
        this.t(rule.dry_run ? "would_have_earned" : "earned", { sum }),
      ];
      const sales = rule.sales.map(
        (sale) => `<tr><td>${escapeHtml(formatTime(this._hass, sale.start))}</td><td class="wide">${escapeHtml(nameOf(sale.supplier))}</td>
          <td class="num">${formatNumber(this._hass, sale.energy_kwh, 2)} kWh</td><td class="num">${escapeHtml(formatMoney(this._hass, sale.net, currency))}</td>
          <td>${escapeHtml(this.t(`sale_${sale.state}`))}</td></tr>`,
      );
      return `<div class="row"><span>${escapeHtml(rule.name)}<small>${escapeHtml(said.join(" · "))}</small></span><b>${escapeHtml(status)}</b></div>${
        sales.length
          ? table(rule.name, [[this.t("when")], [this.t("supplier"), "wide"], [this.t("energy"), "num"], [this.t("net"), "num"], [this.t("state")]], sales)
          : ""
      }`;
    });
    const html =
      heading("mdi:robot-outline", this.t("rules")) +
      (rows.join("") || `<p class="empty">${escapeHtml(this.t("no_rules"))}</p>`);
    if (html !== this._shown) {
      this._shown = html;
      this._body.innerHTML = html;
    }
  }
}

/* Registration -------------------------------------------------------------------------------- */

for (const [name, element] of Object.entries({
  "gridledger-supply-card": GridLedgerSupplyCard,
  "gridledger-rules-card": GridLedgerRulesCard,
})) {
  if (!customElements.get(name)) customElements.define(name, element);
}
