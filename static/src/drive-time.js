// Times in the reader's own zone and words; without JavaScript they stand in UTC.

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

export function showTime(element, iso) {
  const moment = new Date(iso);
  element.dateTime = iso;
  element.textContent = format.format(moment);
  element.title = exact.format(moment);
}

for (const element of document.querySelectorAll("tbody time[datetime]")) showTime(element, element.dateTime);
