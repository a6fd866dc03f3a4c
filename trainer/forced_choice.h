// Multiple choice by the probability of the next token: which tokens count for a letter, and in which orders to ask.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dataio/tokenizer.h"

namespace hanok {

/// The tokens that say each answer letter: "a", " a" and "\na" where they are one token.
struct LetterTokens {
  std::vector<int64_t> ids;  // of all letters, one after the other
  std::vector<int> letter;   // which letter each id says
};
/// `first`: 'a' or 'A'. errors: kData naming a letter that is no token at all
LetterTokens letter_tokens(const Tokenizer& tokenizer, char first, int num_choices);

/// Order number `shuffle` for a question: shown position -> original choice. Number 0 is as given; the others are drawn
/// without repetition by (seed, sample). When there are no more orders, all of them come again, as given first.
std::vector<int> choice_order(int num_choices, int shuffle, uint64_t seed, int64_t sample);

}  // namespace hanok
