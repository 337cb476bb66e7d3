"""An MLflow chat model of somebody else: says the last message again, and refuses the word NO."""

from mlflow.models import set_model
from mlflow.pyfunc import ChatModel
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage


class Echo(ChatModel):
    def predict(self, context, messages, params):
        if "NO" in messages[-1].content:
            raise ValueError("I would rather not")
        message = ChatMessage(role="assistant", content=messages[-1].content)
        return ChatCompletionResponse(choices=[ChatChoice(index=0, message=message)])


set_model(Echo())
