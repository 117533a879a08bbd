import { useSignal, useSignalEffect } from '@preact/signals'
import type { ComponentType } from 'preact'
import { Commands } from './parts/Commands.tsx'
import { Confirm } from './parts/Confirm.tsx'
import { Failed } from './parts/Failed.tsx'
import { Frame } from './parts/Frame.tsx'
import { Help } from './parts/Help.tsx'
import { Skeleton } from './parts/Skeleton.tsx'
import { path } from './router.ts'
import { findRoute, type PageProps, type Route } from './routes.ts'

type Shown = { route: Route; Page: ComponentType<PageProps> } | { route: Route; error: unknown }

const loaded = new Map<Route, ComponentType<PageProps>>()

export function App() {
  const shown = useSignal<Shown | undefined>(undefined)
  useSignalEffect(() => {
    const found = findRoute(path.value)
    if (!found) return
    const { route } = found
    const isWanted = () => findRoute(path.peek())?.route === route
    const Page = loaded.get(route)
    if (Page) shown.value = { route, Page }
    else
      route.load().then(
        ({ Page }) => {
          loaded.set(route, Page)
          if (isWanted()) shown.value = { route, Page }
        },
        (error: unknown) => {
          if (isWanted()) shown.value = { route, error }
        },
      )
  })
  return (
    <>
      <Body shown={shown.value} />
      <Commands />
      <Confirm />
      <Help />
    </>
  )
}

function Body({ shown }: { shown: Shown | undefined }) {
  const found = findRoute(path.value)
  if (!found) {
    return (
      <Frame title="No such page">
        <p>
          There is nothing here. <a href="/">Machines</a>
        </p>
      </Frame>
    )
  }
  const { route, params } = found
  // The first page's files come along with the script: nothing is drawn that is gone in a moment.
  if (shown === undefined) return null
  if (shown.route !== route) {
    return (
      <Frame title={route.title}>
        <Skeleton lines={5} />
      </Frame>
    )
  }
  if ('error' in shown) {
    return (
      <Frame title={route.title}>
        <Failed
          error={new Error('This page could not be loaded: Berth may have been renewed since, or is not reached')}
          wayOn={{ label: 'Load again', act: () => location.reload() }}
        />
      </Frame>
    )
  }
  // By the path: a page of another machine is another page.
  return <shown.Page key={path.value} params={params} />
}
