// What is wrong with GridLedger's cards on this page, as sentences.
() => {
  const wrong = [];
  const cards = [];
  const walk = (node) => {
    if (node.tagName?.startsWith("GRIDLEDGER-")) cards.push(node);
    for (const child of [...(node.shadowRoot?.children ?? []), ...(node.children ?? [])]) walk(child);
  };
  walk(document.body);
  if (!cards.length) wrong.push("there are no cards");

  const shows = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 1 && height > 1 && !element.closest(".hidden") &&
      getComputedStyle(element).visibility === "visible";
  };
  const channels = (color) => {
    const found = (color.match(/[\d.]+/g) ?? []).map(Number);
    return color.startsWith("color(") ? found.map((value, index) => (index < 3 ? 255 * value : value)) : found;
  };
  const luminance = (color) =>
    channels(color).slice(0, 3)
      .map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
      .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const parent = (element) => element.parentElement ?? element.getRootNode().host;
  const behind = (element) => {
    for (let at = element; at; at = parent(at)) {
      const color = getComputedStyle(at).backgroundColor;
      const alpha = channels(color)[3] ?? 1;
      if (alpha > 0.9) return color;
    }
    return "rgb(255, 255, 255)";
  };

  for (const card of cards) {
    const name = card.tagName.toLowerCase();
    const root = card.shadowRoot;
    for (const element of root?.querySelectorAll("*") ?? []) {
      if (element.tagName === "STYLE" || !shows(element)) continue;
      const text = [...element.childNodes]
        .filter((node) => node.nodeType === Node.TEXT_NODE)
        .map((node) => node.data.trim())
        .join(" ")
        .trim();
      if (/^[a-z]+(_[a-z]+)+$/.test(text)) wrong.push(`${name}: "${text}" is not translated`);
      if (/\{\w+\}|undefined|NaN|\[object/.test(text)) wrong.push(`${name}: "${text}"`);
      if (text && !element.disabled) {
        const style = getComputedStyle(element);
        const [one, other] = [luminance(style.color), luminance(behind(element))].sort((a, b) => b - a);
        const ratio = (one + 0.05) / (other + 0.05);
        const large = parseFloat(style.fontSize) >= 18.66;
        if (ratio < (large ? 3 : 4.5)) {
          wrong.push(`${name}: "${text}" has a contrast of ${ratio.toFixed(1)}`);
        }
      }
      const box = element.getBoundingClientRect();
      const edge = card.getBoundingClientRect();
      if (text && box.right > edge.right + 1 && !element.closest(".scroll")) {
        wrong.push(`${name}: "${text}" is cut off`);
      }
      if (element.matches("button, input, select, summary, [role=img], [role=region]")) {
        const label = element.ariaLabel || element.labels?.[0]?.textContent || element.textContent;
        if (!label?.trim()) wrong.push(`${name}: a ${element.tagName} has no name`);
        const { height } = element.getBoundingClientRect();
        if (element.matches("button, input, select") && height < 43.5) {
          wrong.push(`${name}: "${label.trim()}" is ${height.toFixed(0)} px high`);
        }
      }
    }
  }
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) wrong.push(`the page is ${page.scrollWidth} px wide`);
  return [...new Set(wrong)];
}
