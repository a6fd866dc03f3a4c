// The legend of dimension letters. A tensor's name ends in its shape: q_TNH, x_TD, pixels_PC.
// A file may add a letter in its first comment; it never redefines one.
//
//   B  rows (packed sequences)          L  layers
//   T  tokens of a packed row           E  experts
//   D  model width (decoder)            I  images (one video counts one per temporal patch)
//   N  query heads                      P  patches (tower tokens before the merger)
//   K  key/value heads                  M  merged vision tokens (P / merge^2)
//   H  head width                       W  vision width
//   F  feed-forward width               C  channels of one flattened patch (3 * temporal * patch^2)
//   V  vocabulary                       S  samples of a packed row
//
// Local (this rank's shard) or global is said by the variable ("num_heads_local"), not by the letter.
// V is cut over tp in blocks of ceil(V / tp) rows; the last rank may own fewer. No row of V is padding.
// Rows of T are padded at their tail to a multiple of tp * cp; padding has weight 0 and its own segment.
#pragma once
