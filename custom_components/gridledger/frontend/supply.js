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
  lastDay,
  nameOf,
  table,
  explain,
  requestId,
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
  form.more { padding: 4px 0 12px; }
  form.more p { flex: 1 1 100%; margin: 0; }
  form.more label.brief { flex: 0 1 110px; }
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

  get head() {
    return ["mdi:transmission-tower", "supply"];
  }

  question() {
    return { type: `${DOMAIN}/supply` };
  }

  build() {
    super.build();
    this._body.innerHTML = `<div class="shown"></div><div class="result" role="status" aria-live="polite" tabindex="-1"></div>`;
    this._list = this._body.querySelector(".shown");
    this._result = this._body.querySelector(".result");
    this._list.addEventListener("click", ({ target }) => {
      const button = target.closest("button[data-pay], button[data-event], button[data-claim]");
      if (button?.dataset.pay) this._pay(button);
      else if (button?.dataset.event) this._join(button);
      else if (button) this._open(button);
    });
    this._list.addEventListener("submit", (event) => {
      event.preventDefault();
      if (event.target.dataset.claim) this._claim(event.target);
      else this._topUp(event.target);
    });
    this._list.addEventListener("input", ({ target }) => {
      // Another amount is another decision.
      if (target.form?.dataset.topUp) this._settle(false);
    });
  }

  show(supply) {
    this._currency = supply.currency;
    const html = [
      this._permit(supply),
      this._bills(supply),
      this._credit(supply),
      this._responses(supply),
      this._guarantees(supply),
    ].join("");
    // What the owner is about to confirm, or fills in, stays as it is.
    const fills = this._opened || this.shadowRoot.activeElement?.localName === "input";
    if (!this._sure && !fills) this.fill(html, this._list);
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
    const none = `<p class="empty">${escapeHtml(this.t("no_open_bills"))} ${to ? escapeHtml(this.t("billed_to", { day: formatDay(this._hass, lastDay(to)) })) : ""}</p>`;
    return `<h3>${escapeHtml(this.t("open_bills"))}</h3>${rows.join("") || none}`;
  }

  _credit({ prepaid, currency }) {
    if (!prepaid) return "";
    const { credit, credit_kwh: energy, days_left: days, low } = prepaid;
    const left = [formatMoney(this._hass, credit, currency), energy ? `${formatNumber(this._hass, energy, 1)} kWh` : ""];
    if (credit <= 0 && energy <= 0) left.push(this.t("prepaid_empty"));
    else left.push(days === null ? "" : this.t("days_left", { days }), low ? this.t("prepaid_low") : "");
    return `<h3>${escapeHtml(this.t("prepaid"))}</h3><p class="empty">${escapeHtml(left.filter(Boolean).join(" · "))}</p>
      <form class="more" data-top-up="1"><label class="brief">${escapeHtml(`${this.t("amount")} (${currency})`)}
      <input name="amount" type="number" min="0.01" step="0.01" value="20" inputmode="decimal" required></label>
      <button class="do plain small" type="submit">${escapeHtml(this.t("top_up"))}</button></form>`;
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
      ({ batch_id: id, month, plant_id: plant, count, state, claimed_for: claimed }) => `<div class="row"><span>${escapeHtml(month)} · ${escapeHtml(plant)}
        <small>${escapeHtml([this.t(`guarantee_${state}`), claimed].filter(Boolean).join(" · "))}</small></span>
        <b>${formatNumber(this._hass, count, 0)}</b>${
          state === "issued"
            ? `<button class="do plain small" type="button" aria-expanded="false" data-claim="${escapeHtml(id)}" data-count="${Number(count)}">${escapeHtml(this.t("claim"))}</button>`
            : ""
        }</div>`,
    );
    return title + rows.join("");
  }

  /** The first press asks, the second one does it; true on the second. */
  _confirmed(button, decision, question) {
    if (this._sure === decision) return true;
    this._settle(false);
    this._sure = decision;
    this._label = [button, button.textContent];
    button.textContent = question;
    button.classList.remove("plain");
    this._say(question, "hidden");
    this._forget = setTimeout(() => this._settle(), 15000);
    return false;
  }

  /** One name for each decision, until it is carried out. */
  _request(decision) {
    this._requests ??= {};
    return (this._requests[decision] ??= requestId());
  }

  _say(text, kind = "empty") {
    this._result.innerHTML = `<p class="${kind}">${escapeHtml(text)}</p>`;
  }

  /** Do what a button stands for, and say what came of it. */
  async _try(button, act) {
    button.disabled = true;
    try {
      this._say(await act());
      // What was pressed or filled in is done with.
      this._opened?.remove();
      this._opened = undefined;
      this._result.focus({ preventScroll: true });
    } catch (error) {
      this._say(explain(this, error), "error");
    }
    button.disabled = false;
    this._settle();
  }

  async _pay(button) {
    const { pay: number, sum } = button.dataset;
    const decision = `pay ${number} ${sum}`;
    if (!this._confirmed(button, decision, this.t("pay_sure", { sum }))) return;
    await this._try(button, () => this._spend("pay_bill", decision, { number: Number(number) }));
  }

  async _topUp(form) {
    const amount = Number.parseFloat(form.elements.amount.value);
    const sum = formatMoney(this._hass, amount, this._currency);
    const decision = `top_up ${amount}`;
    const button = form.querySelector("button");
    if (!this._confirmed(button, decision, this.t("top_up_sure", { sum }))) return;
    await this._try(button, () => this._spend("top_up", decision, { amount }));
  }

  async _spend(service, decision, data) {
    const paid = await this.act(service, { ...data, request_id: this._request(decision) });
    delete this._requests[decision];
    const sum = formatMoney(this._hass, paid.amount, paid.currency);
    return this.t("paid_in_block", { sum, block: paid.block });
  }

  /** Forget what was to be confirmed; and look again. */
  _settle(again = true) {
    clearTimeout(this._forget);
    if (this._label) {
      const [button, text] = this._label;
      button.textContent = text;
      button.classList.add("plain");
    }
    this._sure = this._label = undefined;
    if (!again) return;
    this._shown = undefined;
    this.ask();
  }

  /** Open or close the form behind a batch of guarantees. */
  _open(button) {
    const { claim: id, count } = button.dataset;
    const known = this._opened?.dataset.claim === id;
    this._opened?.remove();
    for (const one of this._list.querySelectorAll("button[data-claim]")) {
      one.setAttribute("aria-expanded", String(one === button && !known));
    }
    this._opened = undefined;
    if (known) return;
    button.closest(".row").insertAdjacentHTML(
      "afterend",
      `<form class="more" data-claim="${escapeHtml(id)}"><label class="brief">${escapeHtml(this.t("claim_count"))}
        <input name="count" type="number" min="1" max="${Number(count)}" step="1" value="${Number(count)}" required></label>
        <label>${escapeHtml(this.t("claimed_for"))}<input name="claimed_for" maxlength="200" required></label>
        <button class="do small" type="submit">${escapeHtml(this.t("claim"))}</button>
        <p class="how">${escapeHtml(this.t("claim_note"))}</p></form>`,
    );
    this._opened = button.closest(".row").nextElementSibling;
    this._opened.elements.claimed_for.focus();
  }

  async _claim(form) {
    const { count, claimed_for: use } = form.elements;
    await this._try(form.querySelector("button"), async () => {
      const data = { count: Number(count.value), claimed_for: use.value, batch_id: form.dataset.claim };
      const { first_serial: first, last_serial: last, block } = await this.act("claim_certificate", data);
      return this.t("claimed_in_block", { count: formatNumber(this._hass, last - first + 1, 0), block });
    });
  }

  async _join(button) {
    const { event, leave } = button.dataset;
    await this._try(button, async () => {
      const data = { event_id: event, leave: leave === "true" };
      const { participation } = await this.act("join_response_event", data);
      return this.t(`part_${participation}`);
    });
  }
}

/* Trading rules ------------------------------------------------------------------------------- */

/** What the owner's rules trade, or would, and what became of it. */
class GridLedgerRulesCard extends GridLedgerAskingCard {
  get style_() {
    return SUPPLY_STYLE;
  }

  get head() {
    return ["mdi:robot-outline", "rules"];
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
    this.fill(rows.join("") || `<p class="empty">${escapeHtml(this.t("no_rules"))}</p>`);
  }
}

/* Registration -------------------------------------------------------------------------------- */

for (const [name, element] of Object.entries({
  "gridledger-supply-card": GridLedgerSupplyCard,
  "gridledger-rules-card": GridLedgerRulesCard,
})) {
  if (!customElements.get(name)) customElements.define(name, element);
}
