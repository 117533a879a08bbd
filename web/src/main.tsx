/** The dashboard: finds the page for the address, loads it, and keeps the machines live behind it. */
import '../pages/shared.css'
import './style/tokens.css'
import './style/base.css'
import './style/parts.css'
import './style/forms.css'
import { render } from 'preact'
import { App } from './App.tsx'
import { startLive } from './api/live.ts'
import { startNotices } from './api/notices.ts'
import { startKeyboard } from './keyboard.ts'
import { startRouter } from './router.ts'

startRouter()
startKeyboard()
startLive()
startNotices()
const root = document.getElementById('app')
if (root) render(<App />, root)
