/**
 * For tests, in the page: what a person would stumble over, in words. Too wide for the screen or cut off by it, hard to hit,
 * without a label for a screen reader, too little contrast (WCAG 2.2 AA), or nothing without script.
 */
export function faults(): string[] {
  const wrong: string[] = []
  const { documentElement: root } = document
  if (root.scrollWidth > root.clientWidth) wrong.push(`${root.scrollWidth} px wide on ${root.clientWidth}`)
  for (const code of document.querySelectorAll('pre')) {
    if (code.scrollWidth > code.clientWidth) wrong.push(`cut off: ${code.textContent}`)
  }
  if (!root.lang) wrong.push('no language')
  if (document.querySelectorAll('h1').length !== 1) wrong.push('not one h1')
  if (document.querySelectorAll('main').length !== 1) wrong.push('not one main')
  if (document.querySelector('script')) wrong.push('a script')
  for (const control of document.querySelectorAll<HTMLInputElement | HTMLButtonElement>('input, button')) {
    if (control.type === 'hidden') continue
    if (control.tagName === 'INPUT' && !control.labels?.length) wrong.push(`no label for ${control.name}`)
    if (control.getBoundingClientRect().height < 44) wrong.push(`${control.outerHTML} is hard to hit`)
  }
  const channels = (colour: string) => (colour.match(/[\d.]+/g) ?? []).map(Number)
  // WCAG 2.2, relative luminance and contrast ratio.
  const luminance = (colour: string) => {
    const [r = 0, g = 0, b = 0] = channels(colour).map((value) => {
      const part = value / 255
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
    })
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const backOf = (element: Element | null): string => {
    if (!element) return 'rgb(255, 255, 255)'
    const { backgroundColor } = getComputedStyle(element)
    return channels(backgroundColor)[3] === 0 ? backOf(element.parentElement) : backgroundColor
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement
    if (!element || !node.textContent?.trim()) continue
    const [light = 0, dark = 0] = [luminance(getComputedStyle(element).color), luminance(backOf(element))]
      .sort()
      .reverse()
    const contrast = (light + 0.05) / (dark + 0.05)
    if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(1)} of “${node.textContent.trim()}”`)
  }
  return wrong
}
