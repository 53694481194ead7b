// Lines of a journal, and keys of a model, that are not what they should be.
#include "convert/conversion.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "convert/gguf_model_keys.h"
#include "model/families/family.h"

namespace millrace {
namespace {

void expect_words(const std::string& message, const std::string& words) {
  EXPECT_NE(message.find(words), std::string::npos) << words << " in: " << message;
}

TEST(Conversion, ADamagedJournalIsNamed) {
  for (const char* note : {"[]", "{\"rows\":\"x\"}", "{", "{\"layer\":\"a\"}",
                           R"({"layer":1,"format":"q8_0","rows":1,"cols":1,"error":0,"largest":0})"}) {
    const auto layer = layer_of_note(note, "its.journal");
    ASSERT_FALSE(layer.ok()) << note;
    expect_words(layer.error().message, "its.journal is damaged");
  }
  const LayerReport report{.layer = "a", .format = "q8_0", .rows = 2, .cols = 3, .error = 0.5, .output_error = 0.25};
  const auto read = layer_of_note(journal_note(report), "its.journal");
  ASSERT_TRUE(read.ok() && *read);
  EXPECT_EQ((*read)->rows, 2);
  EXPECT_EQ((*read)->output_error, 0.25);
}

TEST(GgufModelKeys, SizesThatNothingUsesAreChecked) {
  nlohmann::json config = {{"architectures", {"Qwen3MoeForCausalLM"}},
                           {"model_type", "qwen3_moe"},
                           {"vocab_size", 40},
                           {"hidden_size", 256},
                           {"intermediate_size", 512},
                           {"moe_intermediate_size", 256},
                           {"num_experts", 4},
                           {"num_experts_per_tok", 2},
                           {"num_hidden_layers", 1},
                           {"num_attention_heads", 4},
                           {"num_key_value_heads", 2},
                           {"head_dim", 64},
                           {"max_position_embeddings", 64},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"decoder_sparse_step", 1},
                           {"mlp_only_layers", nlohmann::json::array()}};
  const auto model = parse_model_config(config, {});
  ASSERT_TRUE(model.ok()) << model.error().message;
  const auto status = [&] {
    GgufMetadataWriter metadata;
    const Status set = set_model_keys(metadata, "qwen3moe", *model, config);
    return set.ok() ? "" : set.error().message;
  };
  EXPECT_EQ(status(), "");
  for (const double size : {1e30, 4294967296.0, -1.0, 0.5}) {
    config["intermediate_size"] = size;
    expect_words(status(), "intermediate_size is");
  }
}

}  // namespace
}  // namespace millrace
