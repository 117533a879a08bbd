import type { Caller } from '../app.ts'
import { accountLimit, accountLs, accountSuspend, accountUnsuspend } from './account.ts'
import { accountCredit, accountPlan } from './account-billing.ts'
import { accountShow } from './account-show.ts'
import { audit } from './audit.ts'
import { billingCredits, billingLimit, billingPlan, billingRates } from './billing.ts'
import { billingInvoices } from './billing-invoices.ts'
import { billingMethod } from './billing-method.ts'
import { billingNotices } from './billing-notices.ts'
import { billingPlans, billingRemovePlan, billingSetPlan, billingSetRate } from './billing-operator.ts'
import { billingPaid } from './billing-paid.ts'
import { billingDetails, billingSeller } from './billing-parties.ts'
import { billingPay, billingPayments } from './billing-payments.ts'
import { billingRecompute } from './billing-recompute.ts'
import { billingRuns } from './billing-runs.ts'
import { billingSend, billingStripe } from './billing-stripe.ts'
import { billingUsage } from './billing-usage.ts'
import { browser, browserLs, browserRm } from './browser.ts'
import { checkpoint, checkpointRm, checkpoints } from './checkpoint.ts'
import type { Command } from './command.ts'
import { comment } from './comment.ts'
import { cp } from './cp.ts'
import { defaultsDelete, defaultsRead, defaultsWrite } from './defaults.ts'
import { doc } from './doc.ts'
import { doctor } from './doctor.ts'
import { domainAdd, domainLs, domainRm } from './domain.ts'
import { exit } from './exit.ts'
import { help } from './help.ts'
import { hold } from './hold.ts'
import { hostDrain, hostLs, hostOvercommit, hostUndrain } from './host.ts'
import { inviteLs, inviteNew, inviteRm } from './invite.ts'
import { logs } from './logs.ts'
import { ls } from './ls.ts'
import { mail } from './mail.ts'
import { newMachine } from './new.ts'
import { port } from './port.ts'
import { restart, start, stop } from './power.ts'
import { rename } from './rename.ts'
import { resize } from './resize.ts'
import { restore } from './restore.ts'
import { rm } from './rm.ts'
import {
  shareAdd,
  shareAddLink,
  shareRemove,
  shareRemoveLink,
  shareSetPrivate,
  shareSetPublic,
  shareShow,
} from './share.ts'
import { pause, resume, sleep, wake } from './sleep.ts'
import { sleepAfter } from './sleep-after.ts'
import { ssh } from './ssh.ts'
import { sshConfig } from './ssh-config.ts'
import { sshKeyAdd, sshKeyGenerateApiKey, sshKeyList, sshKeyRemove, sshKeyRename } from './ssh-key.ts'
import { stat } from './stat.ts'
import { tag } from './tag.ts'
import { tokenLs, tokenNew, tokenRm } from './token.ts'
import { trash, untrash } from './trash.ts'
import { whoami } from './whoami.ts'
import { why } from './why.ts'

/**
 * Every command of Berth, in the order in which help shows them. The SSH lobby, `POST /exec`, the dashboard and MCP
 * run this table; to add a command, write its file and name it here.
 */
export const TABLE: readonly Command[] = [
  newMachine,
  ls,
  ssh,
  start,
  stop,
  restart,
  sleep,
  wake,
  pause,
  resume,
  why,
  hold,
  sleepAfter,
  cp,
  checkpoint,
  checkpoints,
  restore,
  checkpointRm,
  resize,
  stat,
  logs,
  rm,
  trash,
  untrash,
  rename,
  tag,
  comment,
  port,
  shareShow,
  shareAdd,
  shareRemove,
  shareAddLink,
  shareRemoveLink,
  shareSetPublic,
  shareSetPrivate,
  domainAdd,
  domainLs,
  domainRm,
  tokenNew,
  tokenLs,
  tokenRm,
  browser,
  browserLs,
  browserRm,
  whoami,
  sshKeyAdd,
  sshKeyList,
  sshKeyRemove,
  sshKeyRename,
  sshKeyGenerateApiKey,
  sshConfig,
  defaultsRead,
  defaultsWrite,
  defaultsDelete,
  inviteNew,
  inviteLs,
  inviteRm,
  billingPlan,
  billingUsage,
  billingInvoices,
  billingCredits,
  billingRates,
  billingLimit,
  billingNotices,
  billingDetails,
  billingPayments,
  billingPay,
  billingMethod,
  audit,
  doctor,
  mail,
  hostLs,
  hostDrain,
  hostUndrain,
  hostOvercommit,
  accountLs,
  accountShow,
  accountLimit,
  accountPlan,
  accountCredit,
  accountSuspend,
  accountUnsuspend,
  billingPlans,
  billingSetPlan,
  billingSetRate,
  billingRemovePlan,
  billingSeller,
  billingRecompute,
  billingRuns,
  billingPaid,
  billingStripe,
  billingSend,
  help,
  doc,
  exit,
]

/** What a caller is shown and offered by completion. */
export function commandsFor(caller: Caller): readonly Command[] {
  return TABLE.filter((command) => caller.isOwner || !command.operator)
}
