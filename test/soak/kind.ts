export type SoakOptions = { readonly rounds: number; readonly seed: number; readonly only: string }
export type Soaked = { passed: number; failed: number }
