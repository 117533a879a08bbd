import { signal } from '@preact/signals'

/** one column, thumbs: the width at which style/ changes over, too */
const narrow = matchMedia('(max-width: 640px)')
export const isPhone = signal(narrow.matches)
narrow.addEventListener('change', () => {
  isPhone.value = narrow.matches
})

/** whether anybody may see the page: a tab behind others asks for nothing */
export const isSeen = signal(document.visibilityState === 'visible')
document.addEventListener('visibilitychange', () => {
  isSeen.value = document.visibilityState === 'visible'
})
