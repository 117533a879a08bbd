import { z } from 'zod'

/** What a machine takes over of a container image besides the disk; kept with its files. */
export const imageSettingsSchema = z.object({
  /** what its pages are shown from; null: the image does not say */
  webPort: z.number().int().min(1).max(65535).nullable(),
  environment: z.record(z.string(), z.string()),
  /** what a container of it would run; null: nothing */
  service: z
    .object({
      arguments: z.array(z.string()).min(1),
      uid: z.number().int().nonnegative(),
      gid: z.number().int().nonnegative(),
      workingDirectory: z.string(),
    })
    .nullable(),
})
export type ImageSettings = z.infer<typeof imageSettingsSchema>
