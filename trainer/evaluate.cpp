#include "trainer/evaluate.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cctype>

#include "base/clock.h"
#include "dataio/file_io.h"
#include "model/loss/cross_entropy.h"
#include "parallel/pipeline_run.h"
#include "trainer/forced_choice.h"
#include "trainer/progress.h"
#include "trainer/step.h"

namespace hanok {
namespace {

/// One evaluation on one rank.
class Judge {
 public:
  Judge(const Vlm& model, const Dataset& dataset, const SampleEncoder& encoder, const EvalOptions& options)
      : model_(model), dataset_(dataset), encoder_(encoder), options_(options), samples_(dataset.size()) {}

  /// False when some rank was asked to stop.
  bool judge_all();
  /// Every rank's samples on every rank.
  std::vector<JudgedSample> gather();

 private:
  bool stop_is_agreed() const;
  /// Whether ranks with other batches take part in a forward: then every one has as many.
  bool ranks_meet() const { return model_.groups().ep->size() * model_.groups().etp->size() > 1; }
  /// This rank's batches of one order of the choices, prepared ahead.
  RowReader reader_of(const std::vector<Row>& rows, int64_t num_batches, int shuffle) const;
  void judge_batch(const Batch& batch, int shuffle);
  void note_labels(const Batch& batch, const Tensor& nll_N);
  void note_choices(const Batch& batch, const ModelOutput& y, const RowCut& cut);

  const Vlm& model_;
  const Dataset& dataset_;
  const SampleEncoder& encoder_;
  const EvalOptions& options_;
  std::vector<JudgedSample> samples_;
};

bool Judge::judge_all() {
  const std::vector<Row> rows = evaluation_rows(dataset_, 0, options_.seq_len);
  const Comm& ranks = *model_.groups().dp;
  const auto num_rows = static_cast<int64_t>(rows.size());
  const int64_t num_batches = (num_rows + options_.rows_per_forward - 1) / options_.rows_per_forward;
  Progress progress("evaluate", num_batches * options_.shuffles, "batches", options_.show_progress ? 2 : 1e9);
  for (int shuffle = 0; shuffle < options_.shuffles; ++shuffle) {
    RowReader reader = reader_of(rows, num_batches, shuffle);
    // Batches have the same rows whatever the number of ranks: turn t gives batch t * size + r to rank r.
    for (int64_t first = 0; first < num_batches; first += ranks.size()) {
      if (stop_is_agreed()) return false;
      std::optional<Batch> batch = reader.next();
      if (!batch && ranks_meet()) batch = make_batch({}, {}, options_.batch);
      if (batch) judge_batch(*batch, shuffle);
      progress.update(shuffle * num_batches + std::min(first + ranks.size(), num_batches));
    }
  }
  return true;
}

bool Judge::stop_is_agreed() const {
  if (!options_.stop_requested) return false;
  Tensor stop = at::full({}, options_.stop_requested() ? 1 : 0, at::kLong);
  model_.groups().control->all_reduce(stop, Reduce::kMax);
  return stop.item<int64_t>() != 0;
}

RowReader Judge::reader_of(const std::vector<Row>& rows, int64_t num_batches, int shuffle) const {
  const Comm& ranks = *model_.groups().dp;
  std::vector<std::vector<Row>> own;
  for (int64_t number = ranks.rank(); number < num_batches; number += ranks.size()) {
    const auto begin = rows.begin() + number * options_.rows_per_forward;
    own.emplace_back(begin, begin + std::min<int64_t>(options_.rows_per_forward, rows.end() - begin));
    if (shuffle == 0) continue;
    for (Row& row : own.back())  // what has no choices is the same in every order
      std::erase_if(row, [&](const SampleRef& ref) { return samples_[ref.index].probabilities.empty(); });
  }
  const auto permuted = [this, shuffle](const SampleRef& ref, Sample sample) {  // called from reader threads
    if (shuffle == 0) return sample;
    const std::vector<int> order = choice_order(sample.num_choices, shuffle, options_.seed, ref.index);
    return with_permuted_choices(sample, order, dataset_.provenance("prompt"), encoder_);
  };
  const LoaderOptions reading{
      .batch = options_.batch, .reader_threads = options_.reader_threads, .prefetch_steps = options_.prefetch_batches};
  const auto not_owned = std::shared_ptr<const Dataset>(std::shared_ptr<void>(), &dataset_);
  return RowReader({not_owned}, std::move(own), reading, permuted);
}

/// One batch through the pieces of a pipeline, without gradients.
class ForwardWork : public PieceWork {
 public:
  ForwardWork(const Vlm& model, const Batch& batch) : model_(model), input_(model_input(batch, model)) {}
  std::vector<Tensor> stream_into(int piece, int) const override { return model_.stream_into(piece, input_); }
  Output forward(int piece, int, const std::vector<Tensor>& stream) override {
    return {.stream = model_.run_piece(piece, input_, stream)};
  }
  bool trains(int) const override { return false; }
  void defer_weights(bool) override {}
  std::function<void()> take_deferred() override { return nullptr; }
  const RowCut& cut() const { return input_.cut; }

 private:
  const Vlm& model_;
  ModelInput input_;
};

void Judge::judge_batch(const Batch& batch, int shuffle) {
  if (batch.samples.empty() && !ranks_meet()) return;
  for (const PlacedSample& placed : batch.samples)
    if (placed.num_choices > 0) samples_[placed.index].probabilities.resize(placed.num_choices, 0.0);
  ForwardWork work(model_, batch);
  const std::vector<Tensor> out = run_forward(model_.pipeline(), 0, work, *model_.groups().pp);
  if (!model_.has_head()) return;
  const ModelOutput y{out.front()};
  if (shuffle == 0 && batch.num_labels > 0) {
    const Batch own = own_rows(batch, work.cut(), model_.groups());
    const Tensor nll_N = label_losses(y.y_TD, model_.head(), own.targets_T, model_.groups());
    const Tensor labels_N = batch.targets_T.ne(-100).nonzero().squeeze(1);
    note_labels(batch, gather_chosen(nll_N, labels_N, work.cut(), model_.groups()));
  }
  note_choices(batch, y, work.cut());
}

void Judge::note_labels(const Batch& batch, const Tensor& nll_N) {
  const Tensor nll = nll_N.to(at::kCPU, at::kDouble).contiguous();
  const auto* targets = batch.targets_T.const_data_ptr<int64_t>();
  const auto* weights = batch.weight_T.const_data_ptr<float>();
  const double* next = nll.const_data_ptr<double>();
  for (const PlacedSample& placed : batch.samples) {
    JudgedSample& sample = samples_[placed.index];
    for (int64_t t = placed.begin; t < placed.end; ++t) {
      if (targets[t] == -100) continue;
      sample.weighted_nll += weights[t] * *next;
      sample.weight += weights[t];
      ++sample.num_labels;
      if (!options_.dump.empty()) {
        sample.label_ids.push_back(targets[t]);
        sample.label_logprobs.push_back(-*next);
      }
      ++next;
    }
  }
}

/// A multiple choice of the batch: where its letter is predicted, and in which case it is written.
struct Question {
  const PlacedSample* placed;
  int64_t row;
  bool upper;
};

std::vector<Question> questions_of(const Batch& batch, const Tokenizer& tokenizer) {
  std::vector<Question> out;
  const auto* targets = batch.targets_T.const_data_ptr<int64_t>();
  for (const PlacedSample& placed : batch.samples) {
    if (placed.num_choices == 0) continue;
    const auto* label = std::find_if(targets + placed.begin, targets + placed.end, [](int64_t t) { return t != -100; });
    Question question{&placed, label - targets, false};
    if (question.row < placed.end) {
      const auto id = static_cast<int32_t>(*label);
      for (const char c : tokenizer.decode({&id, 1}))
        question.upper |= std::isupper(static_cast<unsigned char>(c)) != 0;
    } else {
      question.row = placed.end - 1;  // no answer given: the prompt's last token predicts it
    }
    out.push_back(question);
  }
  return out;
}

void Judge::note_choices(const Batch& batch, const ModelOutput& y, const RowCut& cut) {
  const std::vector<Question> questions = questions_of(batch, *encoder_.tokenizer);
  if (questions.empty()) return;
  int most = 0;
  std::vector<int64_t> rows;
  for (const Question& question : questions) {
    most = std::max(most, question.placed->num_choices);
    rows.push_back(question.row);
  }
  const Tensor rows_N = at::tensor(rows, at::kLong);
  const at::Device device = model_.device();
  for (const bool upper : {false, true}) {
    if (std::none_of(questions.begin(), questions.end(), [&](const Question& q) { return q.upper == upper; })) continue;
    const LetterTokens letters = letter_tokens(*encoder_.tokenizer, upper ? 'A' : 'a', most);
    const Tensor held = candidate_logprobs(y.y_TD,
                                           model_.head(),
                                           held_of(rows_N, cut, model_.groups()).to(device),
                                           at::tensor(letters.ids, at::kLong).to(device),
                                           model_.groups());
    const Tensor probabilities = gather_chosen(held, rows_N, cut, model_.groups()).to(at::kCPU, at::kDouble).exp();
    for (size_t q = 0; q < questions.size(); ++q) {
      if (questions[q].upper != upper) continue;
      const PlacedSample& placed = *questions[q].placed;
      std::vector<double> shown(most, 0.0);
      for (size_t c = 0; c < letters.ids.size(); ++c)
        shown[letters.letter[c]] += probabilities[static_cast<int64_t>(q)][static_cast<int64_t>(c)].item<double>();
      shown.resize(placed.num_choices);
      double total = 0;
      for (const double p : shown) total += p;
      JudgedSample& sample = samples_[placed.index];
      sample.probabilities.resize(placed.num_choices, 0.0);
      const auto original = [&](int position) {
        return placed.permutation.empty() ? position : placed.permutation[position];
      };
      for (int i = 0; i < placed.num_choices; ++i)
        sample.probabilities[original(i)] +=
            (total == 0 ? 1.0 / placed.num_choices : shown[i] / total) / options_.shuffles;  // not a number stays none
      if (placed.answer >= 0) sample.answer = original(placed.answer);
    }
  }
}

/// Adds up what ranks know of disjoint samples: one rank has the values, the others zeros, so nothing is rounded.
void add_up(Tensor& table, const Vlm& model) {
  const Groups& groups = model.groups();
  const bool repeats = groups.tp->rank() > 0 || groups.cp->rank() > 0;  // the same samples as rank 0 of the group
  if (repeats || !model.has_head()) table.zero_();
  groups.control->all_reduce(table, Reduce::kSum);
}

std::vector<JudgedSample> Judge::gather() {
  const Groups& groups = model_.groups();
  const auto n = static_cast<int64_t>(samples_.size());
  Tensor most = at::zeros({}, at::kLong);
  for (const JudgedSample& s : samples_)
    most.fill_(std::max<int64_t>(most.item<int64_t>(), static_cast<int64_t>(s.probabilities.size())));
  groups.control->all_reduce(most, Reduce::kMax);
  constexpr int64_t kFixed = 5;
  Tensor table = at::zeros({n, kFixed + most.item<int64_t>()}, at::kDouble);
  auto cells = table.accessor<double, 2>();
  for (int64_t i = 0; i < n; ++i) {
    const JudgedSample& s = samples_[i];
    cells[i][0] = s.weighted_nll;
    cells[i][1] = s.weight;
    cells[i][2] = s.answer + 1;  // 0: not given, or not here
    cells[i][3] = static_cast<double>(s.probabilities.size());
    cells[i][4] = static_cast<double>(s.num_labels);
    for (size_t c = 0; c < s.probabilities.size(); ++c) cells[i][kFixed + c] = s.probabilities[c];
  }
  add_up(table, model_);

  std::vector<JudgedSample> all(n);
  int64_t num_labels = 0;
  for (int64_t i = 0; i < n; ++i) {
    JudgedSample& s = all[i];
    s.weighted_nll = cells[i][0];
    s.weight = cells[i][1];
    s.answer = static_cast<int>(cells[i][2]) - 1;
    for (int64_t c = 0; c < static_cast<int64_t>(cells[i][3]); ++c) s.probabilities.push_back(cells[i][kFixed + c]);
    s.num_labels = static_cast<int64_t>(cells[i][4]);
    num_labels += s.num_labels;
  }
  if (options_.dump.empty()) return all;

  Tensor labels = at::zeros({num_labels, 2}, at::kDouble);
  auto label_cells = labels.accessor<double, 2>();
  int64_t next = 0;
  for (int64_t i = 0; i < n; next += all[i++].num_labels) {
    for (size_t k = 0; k < samples_[i].label_ids.size(); ++k) {
      label_cells[next + k][0] = static_cast<double>(samples_[i].label_ids[k]);
      label_cells[next + k][1] = samples_[i].label_logprobs[k];
    }
  }
  add_up(labels, model_);
  next = 0;
  for (JudgedSample& s : all) {
    for (int64_t k = 0; k < s.num_labels; ++k, ++next) {
      s.label_ids.push_back(static_cast<int64_t>(label_cells[next][0]));
      s.label_logprobs.push_back(label_cells[next][1]);
    }
  }
  return all;
}

void write_files(const std::vector<JudgedSample>& samples, const Dataset& dataset, const EvalOptions& options) {
  std::string dump, submission = "id,answer\n";
  for (size_t i = 0; i < samples.size(); ++i) {
    const std::string id = dataset.id(static_cast<int64_t>(i));
    if (!options.dump.empty()) dump += dump_line(id, samples[i]) + "\n";
    if (!samples[i].probabilities.empty()) submission += submission_line(id, samples[i]) + "\n";
  }
  if (!options.dump.empty()) write_file_atomically(options.dump, dump);
  if (!options.submission.empty()) write_file_atomically(options.submission, submission);
}

}  // namespace

EvalResult evaluate(const Vlm& model,
                    const Dataset& dataset,
                    const SampleEncoder& encoder,
                    const EvalOptions& options) {
  const at::NoGradGuard no_grad;
  const double began = now_s();
  Judge judge(model, dataset, encoder, options);
  if (!judge.judge_all()) return {.complete = false};
  std::vector<JudgedSample> samples = judge.gather();
  EvalResult result = summarise(samples);
  if (model.groups().rank == 0 && result.num_not_finite == 0) write_files(samples, dataset, options);
  result.samples = std::move(samples);
  result.seconds = now_s() - began;
  return result;
}

}  // namespace hanok
