#include "trainer/forced_choice.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "dataio/sampler.h"
#include "parallel/init.h"

namespace hanok {

LetterTokens letter_tokens(const Tokenizer& tokenizer, char first, int num_choices) {
  LetterTokens out;
  for (int i = 0; i < num_choices; ++i) {
    const std::string letter(1, static_cast<char>(first + i));
    const size_t before = out.ids.size();
    for (const std::string& text : {letter, " " + letter, "\n" + letter}) {
      const std::vector<int32_t> ids = tokenizer.encode(text);
      if (ids.size() != 1) continue;
      out.ids.push_back(ids[0]);
      out.letter.push_back(i);
    }
    HANOK_REQUIRE(out.ids.size() > before, kData)
        << "answer letter: got several tokens for '" << letter << "', expected one; tokenizer of model.tokenizer";
  }
  return out;
}

std::vector<int> choice_order(int num_choices, int shuffle, uint64_t seed, int64_t sample) {
  std::vector<int> order(num_choices);
  std::iota(order.begin(), order.end(), 0);
  int64_t num_orders = 1;
  for (int i = 2; i <= std::min(num_choices, 20); ++i) num_orders *= i;
  const int64_t turn = shuffle % num_orders;
  if (turn == 0) return order;
  const uint64_t key = random_bits(key_of(seed, "choice order"), static_cast<uint64_t>(sample));
  int64_t number = 1 + permuted(key, turn - 1, num_orders - 1);
  // The number in the factorial system: its digits pick from what is left.
  for (int i = 0; i + 1 < num_choices; ++i) {
    const int left = num_choices - i;
    const auto pick = static_cast<int>(number % left);
    number /= left;
    std::rotate(order.begin() + i, order.begin() + i + pick, order.begin() + i + pick + 1);
  }
  return order;
}

}  // namespace hanok
