/** What an image may be. Whoever makes a machine may name any: each of these is somebody else's number otherwise. */
export const limits = {
  manifestBytes: 4 * 2 ** 20,
  configBytes: 8 * 2 ** 20,
  tokenBytes: 2 ** 20,
  layers: 256,
  /** of all layers, as they are sent */
  packedBytes: 64 * 2 ** 30,
  /**
   * of all layers, unpacked, beyond the disk that they are for, and at most; counted while they are, because a gigabyte of
   * zeros is a megabyte sent
   */
  unpackedBeyondBytes: 16 * 2 ** 30,
  unpackedBytes: 256 * 2 ** 30,
  /** of all layers together */
  entries: 1_000_000,
  /** with the path of the folder that it is unpacked to, what the kernel takes */
  pathBytes: 3500,
  nameBytes: 255,
  /** of one entry's extended header: names, attributes */
  extendedHeaderBytes: 2 ** 20,
  /** of one file; what ext4 holds beside an inode of 256 bytes is one block */
  attributesBytes: 3500,
  /** of all files of all layers: they are held in memory until all is written */
  allAttributesBytes: 64 * 2 ** 20,
  sparseSegments: 100_000,
  symlinks: 255,
} as const

/** Layers fetched side by side. */
export const layersAtOnce = 3
/** Images fetched and made side by side; more only wait for the same disk. */
export const pullsAtOnce = 4
/** Of these, for one account: a registry of its own can be as slow as it likes. */
export const pullsOfAccount = 2

/** A registry that is slower than this keeps others from theirs: until it has said what an image is, and then a minute. */
export const resolveMostMs = 120_000
export const leastBytesAMinute = 2 ** 19
